// Both documents are beside /docs, wherever that is mounted.
const documents = { v1: "openapi.yaml", e2b: "e2b.yaml" };
const chosen = new URLSearchParams(location.search).get("api");
window.ui = SwaggerUIBundle({
  url: Object.hasOwn(documents, chosen) ? documents[chosen] : documents.v1,
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false, // keys stay out of the browser's storage
  validatorUrl: null, // nothing is sent elsewhere
});
