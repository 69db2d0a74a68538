// Starts ReDoc on this service's own description.
"use strict";

// ReDoc draws its maker's logo from a CDN and has no option against it. Such an image is told that it failed to load,
// upon which ReDoc leaves it out; asking for it would break the policy of this page.
const image = HTMLImageElement.prototype;
image.setAttribute = function (name, value) {
  if (name === "src" && /^https?:/.test(value) && new URL(value).origin !== location.origin) {
    setTimeout(() => this.dispatchEvent(new Event("error")));
  } else {
    Element.prototype.setAttribute.call(this, name, value);
  }
};
// React sets both the attribute and the property.
Object.defineProperty(image, "src", {
  ...Object.getOwnPropertyDescriptor(image, "src"),
  set(value) {
    this.setAttribute("src", value);
  },
});

const fontFamily = "system-ui, sans-serif";
document.body.style.margin = "0";
Redoc.init(
  "openapi.json",
  {
    expandResponses: "200",
    requiredPropsFirst: true,
    theme: {
      typography: {
        fontFamily,
        headings: { fontFamily },
        code: { fontFamily: "ui-monospace, monospace" },
      },
    },
  },
  document.getElementById("redoc"),
);
