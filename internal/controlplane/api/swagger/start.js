window.ui = SwaggerUIBundle({
  url: "openapi.yaml", // beside /docs, wherever that is mounted
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false, // keys stay out of the browser's storage
  validatorUrl: null, // nothing is sent elsewhere
});
