// Both documents are beside /docs, wherever that is mounted.
const documents = { v1: "openapi.yaml", e2b: "e2b.yaml" };
const chosen = new URLSearchParams(location.search).get("api");

// A key is kept while this tab is open, so that a reload keeps it: sessionStorage is of this
// tab and origin alone.
const place = "wrenn.docs.authorized";
function kept() {
  try {
    return Object.entries(JSON.parse(sessionStorage.getItem(place) ?? "{}"));
  } catch {
    return []; // written by something else, or storage is off
  }
}
function keep(change) {
  try {
    const now = Object.fromEntries(kept());
    change(now);
    sessionStorage.setItem(place, JSON.stringify(now));
  } catch {
    // Without storage a reload forgets it.
  }
}
const keepsKeys = {
  statePlugins: {
    auth: {
      wrapActions: {
        authorize: (original) => (schemes) => {
          keep((now) => {
            for (const [name, scheme] of Object.entries(schemes)) if (typeof scheme.value === "string") now[name] = scheme.value;
          });
          return original(schemes);
        },
        logout: (original) => (names) => {
          keep((now) => {
            for (const name of names) delete now[name];
          });
          return original(names);
        },
      },
    },
  },
};

// The errors are the same for most operations: one button shows those of an operation.
const collapsesErrors = ({ React }) => ({
  wrapComponents: {
    responses: (Original) =>
      function Responses(props) {
        const [open, setOpen] = React.useState(false);
        const errors = props.responses.filter((_, code) => /^[45]/.test(code));
        const others = props.responses.filter((_, code) => !/^[45]/.test(code));
        const collapses = errors.size > 1 && others.size > 0;
        const table = React.createElement(Original, { ...props, responses: collapses && !open ? others : props.responses });
        if (!collapses) return table;
        const text = open ? "Hide the errors" : `Show the errors: ${[...errors.keys()].join(", ")}`;
        const button = React.createElement("button", { type: "button", className: "btn errors", "aria-expanded": open, onClick: () => setOpen(!open) }, text);
        return React.createElement("div", null, table, React.createElement("p", { className: "opblock-section-header" }, button));
      },
  },
});

window.ui = SwaggerUIBundle({
  url: Object.hasOwn(documents, chosen) ? documents[chosen] : documents.v1,
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false, // that would keep keys until they are removed
  validatorUrl: null, // nothing is sent elsewhere
  plugins: [keepsKeys, collapsesErrors],
  onComplete: () => {
    for (const [name, value] of kept()) ui.preauthorizeApiKey(name, value);
  },
});
