// Shows explorers on a page without a kernel: gives each a local model made from the saved widget state. It reads the
// widget-state and widget-view scripts that `standalone_html`, nbconvert and myst-nb all write.
(() => {
  const scripts = (kind) => document.querySelectorAll(`script[type="application/vnd.jupyter.widget-${kind}+json"]`);

  function localModel(entry) {
    const state = { ...entry.state };
    for (const { path, data } of entry.buffers ?? [])
      state[path.at(-1)] = new DataView(Uint8Array.from(atob(data), (c) => c.charCodeAt(0)).buffer);
    const listeners = new Map();
    const emit = (name, ...values) => [...(listeners.get(name) ?? [])].forEach((f) => f(...values));
    return {
      kernel: false,
      get: (name) => state[name],
      set(name, value) {
        if (state[name] === value) return;
        state[name] = value;
        emit(`change:${name}`, this, value);
      },
      save_changes() {},
      send() {},
      on: (name, f) => listeners.set(name, [...(listeners.get(name) ?? []), f]),
      off: (name, f) => listeners.set(name, (listeners.get(name) ?? []).filter((g) => g !== f)),
    };
  }

  const modules = new Map(); // one copy of a module however many explorers use it
  function load(source) {
    if (!modules.has(source))
      modules.set(source, import(URL.createObjectURL(new Blob([source], { type: "text/javascript" }))));
    return modules.get(source);
  }

  async function mount(element, model) {
    const style = document.createElement("style");
    style.textContent = model.get("_css") ?? "";
    element.append(style);
    const { default: widget } = await load(model.get("_esm"));
    await widget.render({ model, el: element });
  }

  async function start() {
    const states = {};
    for (const script of scripts("state")) Object.assign(states, JSON.parse(script.textContent).state);
    const models = new Map();
    for (const script of scripts("view")) {
      const id = JSON.parse(script.textContent).model_id;
      const element = document.createElement("div");
      script.after(element);
      if (states[id]?.model_name !== "AnyModel") {
        element.textContent = "This control needs a running kernel: open the notebook in JupyterLab.";
        continue;
      }
      if (!models.has(id)) models.set(id, localModel(states[id]));
      try {
        await mount(element, models.get(id));
      } catch (error) {
        element.textContent = `This explorer could not be shown: ${error}`;
        console.error(error);
      }
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
