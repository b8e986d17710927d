// Browsers start no worker for a page from the disk. There the site's search, which is written as a worker, runs in a
// hidden frame instead. (mkdocs-material's own shim for this would be fetched from a foreign server.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const source = this.inside.document.createElement("script");
      source.src = new URL(script, location.href);
      this.loaded = new Promise((resolve) => (source.onload = resolve));
      this.inside.document.body.append(source);
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }
  };
}
