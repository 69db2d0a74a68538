// Starts Swagger UI on this service's own description.
"use strict";

// Without a server in the description calls go to the host's root; behind a proxy that strips a prefix that is not us.
const here = new URL(".", location.href).href.replace(/\/$/, "");
const atThisAddress = () => ({
  statePlugins: {
    spec: {
      wrapActions: {
        updateJsonSpec: (update) => (spec) => update(spec.servers ? spec : { ...spec, servers: [{ url: here }] }),
      },
    },
  },
});

document.body.style.margin = "0";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger",
  plugins: [atThisAddress],
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  validatorUrl: null, // no badge from a validation service
});
