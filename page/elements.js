/* Three elements of the page. What they show comes in attributes; nothing here asks a server for anything. */
(() => {
  "use strict";

  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes))
      key.startsWith("on") ? node.addEventListener(key.slice(2), value) : node.setAttribute(key, value);
    node.append(...children); // strings become text, never markup
    return node;
  };

  const load = async (source) => {
    const image = new Image();
    image.src = source;
    await image.decode();
    return image;
  };

  const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

  /* A picture, the class of every pixel, and three ways to look at them.
     picture, mask: addresses of pictures of one size, the mask grey with class ids; classes: JSON list of
     {name, color, share}; keep: JSON list of the class ids that a cut-out keeps at first. */
  class SegmentationView extends HTMLElement {
    static style = `
      :host { display: block; color: var(--body-text-color); font: 14px/1.4 system-ui, sans-serif; }
      .stage { position: relative; border-radius: 8px; overflow: hidden; touch-action: pan-y;
        background: repeating-conic-gradient(#c4c9d1 0 25%, #eef0f3 0 50%) 0 0 / 20px 20px; }
      canvas { display: block; width: 100%; max-height: 62vh; object-fit: contain; margin: auto; }
      .tip { position: absolute; pointer-events: none; padding: 2px 8px; border-radius: 6px; color: #fff;
        background: #10151dcc; transform: translate(-50%, -150%); white-space: nowrap; }
      .tip:empty { display: none; }
      .bar { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; margin: 10px 0; }
      .modes { display: inline-flex; border: 1px solid var(--border-color-primary); border-radius: 8px;
        overflow: hidden; }
      button { all: unset; padding: 7px 12px; cursor: pointer; }
      button:focus-visible, input:focus-visible { outline: 2px solid var(--color-accent); outline-offset: -2px; }
      button[aria-pressed=true] { background: var(--color-accent); color: #fff; }
      .save { margin-left: auto; color: var(--link-text-color); text-decoration: underline; cursor: pointer; }
      label.range { display: flex; align-items: center; gap: 8px; flex: 1 1 180px; }
      input[type=range] { flex: 1; min-width: 90px; accent-color: var(--color-accent); }
      ul { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px; }
      li label { display: grid; grid-template-columns: auto 16px 1fr auto; gap: 4px 10px; align-items: center; }
      li label:hover b { text-decoration: underline; }
      .chip { height: 16px; border-radius: 4px; border: 1px solid var(--body-text-color-subdued); }
      .share { grid-column: 3 / 5; height: 5px; border-radius: 4px; background: var(--border-color-primary); }
      .share i { display: block; height: 100%; border-radius: 4px; }
      b { font-weight: 600; overflow-wrap: anywhere; }
      .absent { opacity: .55; }
    `;

    static observedAttributes = ["picture", "mask", "classes", "keep"];

    /* gradio does not replace an element whose name stays, it changes the attributes: show the new ones once. */
    attributeChangedCallback() {
      if (!this.isConnected || this.waiting) return;
      this.waiting = true;
      queueMicrotask(() => { this.waiting = false; this.show(); });
    }

    connectedCallback() { this.attributeChangedCallback(); }

    async show() {
      const root = this.shadowRoot ?? this.attachShadow({ mode: "open" });
      const turn = (this.turn = (this.turn ?? 0) + 1);
      this.removeAttribute("ready");
      [this.ids, this.sheet, this.lit] = [null, null, null];
      this.classes = JSON.parse(this.getAttribute("classes"));
      this.kept = new Set(JSON.parse(this.getAttribute("keep") || "null") ?? this.classes.keys());
      this.shown = new Set(this.classes.keys());
      this.mode = this.getAttribute("mode") || "overlay";
      this.values = { overlay: 0.5, compare: 0.5 };
      root.replaceChildren(make("style", {}, SegmentationView.style), this.layOut());
      const [picture, mask] = await Promise.all([load(this.getAttribute("picture")), load(this.getAttribute("mask"))]);
      if (turn !== this.turn) return; // a newer result has come meanwhile
      this.picture = picture;
      [this.canvas.width, this.canvas.height] = [picture.naturalWidth, picture.naturalHeight];
      const reader = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight).getContext("2d", { willReadFrequently: true });
      reader.imageSmoothingEnabled = false;
      reader.drawImage(mask, 0, 0, picture.naturalWidth, picture.naturalHeight);
      this.ids = reader.getImageData(0, 0, picture.naturalWidth, picture.naturalHeight).data;
      this.paint();
      this.setAttribute("ready", "");
    }

    layOut() {
      this.canvas = make("canvas", { role: "img", "aria-label": this.describe() });
      this.tip = make("div", { class: "tip" });
      const follow = (event) => this.point(event);
      const stage = make("div", { class: "stage", onpointermove: follow, onpointerdown: follow,
        onpointerleave: () => { this.tip.textContent = ""; this.highlight(null); } }, this.canvas, this.tip);
      const modes = [["overlay", "Overlay"], ["compare", "Before / after"], ["cutout", "Cut-out"]];
      this.buttons = modes.map(([mode, name]) => make("button", { type: "button", "data-mode": mode, onclick: () => this.enter(mode) }, name));
      this.range = make("input", { type: "range", min: 0, max: 1, step: 0.01, oninput: () => {
        this.values[this.mode] = Number(this.range.value); this.paint(); } });
      this.caption = make("span");
      this.slider = make("label", { class: "range" }, this.caption, this.range);
      this.save = make("button", { class: "save", type: "button", title: "The picture as it looks now, as PNG",
        onclick: () => make("a", { href: this.canvas.toDataURL(), download: `segmented-${this.mode}.png` }).click() }, "Save view");
      const rows = this.classes.map((entry, id) => this.row(entry, id));
      const view = make("div", {}, stage, make("div", { class: "bar" },
        make("div", { class: "modes", role: "group", "aria-label": "Way to look" }, ...this.buttons), this.slider, this.save),
        make("ul", { class: "legend", "aria-label": "Classes" }, ...rows));
      this.enter(this.mode);
      return view;
    }

    row(entry, id) {
      const box = make("input", { type: "checkbox", onchange: () => {
        const chosen = this.mode === "cutout" ? this.kept : this.shown;
        box.checked ? chosen.add(id) : chosen.delete(id);
        this.paint(); } });
      const bar = make("i"), chip = make("span", { class: "chip" });
      chip.style.background = bar.style.background = entry.color;
      bar.style.width = percent(entry.share).replace("< ", "").replace(" ", "");
      return make("li", { class: entry.share ? "" : "absent", onpointerenter: () => this.highlight(id), onpointerleave: () => this.highlight(null) },
        make("label", {}, box, chip, make("span", {}, entry.name), make("b", {}, percent(entry.share)), make("span", { class: "share" }, bar)));
    }

    describe() {
      return "Segmented picture: " + this.classes.filter((c) => c.share).map((c) => `${c.name} ${percent(c.share)}`).join(", ");
    }

    enter(mode) {
      this.mode = mode;
      for (const button of this.buttons) button.setAttribute("aria-pressed", button.dataset.mode === mode);
      this.slider.hidden = mode === "cutout";
      this.slider.style.display = mode === "cutout" ? "none" : "";
      this.caption.textContent = mode === "overlay" ? "Colours" : "Reveal";
      this.range.setAttribute("aria-label", mode === "overlay" ? "Strength of the colours" : "Place of the dividing line");
      if (mode !== "cutout") this.range.value = this.values[mode];
      this.paint();
    }

    /* Only `id` keeps its colour while a pointer rests on it. */
    highlight(id) {
      if (this.lit === id) return;
      this.lit = id;
      this.paint();
    }

    point(event) {
      if (!this.ids) return;
      const box = this.canvas.getBoundingClientRect();
      const scale = Math.min(box.width / this.canvas.width, box.height / this.canvas.height);
      const x = Math.floor((event.clientX - box.x - (box.width - scale * this.canvas.width) / 2) / scale);
      const y = Math.floor((event.clientY - box.y - (box.height - scale * this.canvas.height) / 2) / scale);
      const inside = x >= 0 && y >= 0 && x < this.canvas.width && y < this.canvas.height;
      const id = inside ? this.ids[4 * (y * this.canvas.width + x)] : null;
      this.tip.textContent = inside ? this.classes[id]?.name ?? `class ${id}` : "";
      this.tip.style.left = `${event.clientX - box.x}px`;
      this.tip.style.top = `${event.clientY - box.y}px`;
      if (this.mode === "overlay") this.highlight(id);
      if (this.mode === "compare" && event.buttons && inside) {
        this.range.value = this.values.compare = x / this.canvas.width;
        this.paint();
      }
    }

    paint() {
      const cutout = this.mode === "cutout";
      for (const [id, box] of [...this.shadowRoot?.querySelectorAll("li input") ?? []].entries())
        box.checked = (cutout ? this.kept : this.shown).has(id);
      if (!this.ids) return;
      const { width, height } = this.canvas, pen = this.canvas.getContext("2d");
      const colors = this.classes.map(({ color }) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)));
      const layer = new ImageData(width, height), out = layer.data;
      const alone = this.lit != null && this.mode === "overlay" && this.shown.has(this.lit) ? this.lit : null;
      for (let at = 0; at < out.length; at += 4) {
        const id = this.ids[at], color = colors[id];
        if (!color) continue;
        if (cutout) out[at + 3] = this.kept.has(id) ? 255 : 0;
        else if (this.shown.has(id)) {
          [out[at], out[at + 1], out[at + 2]] = color;
          out[at + 3] = alone === null || alone === id ? 255 : 70;
        }
      }
      this.sheet ??= new OffscreenCanvas(width, height);
      this.sheet.getContext("2d").putImageData(layer, 0, 0);
      pen.clearRect(0, 0, width, height);
      pen.drawImage(this.picture, 0, 0, width, height);
      if (cutout) {
        pen.globalCompositeOperation = "destination-in";
        pen.drawImage(this.sheet, 0, 0);
        pen.globalCompositeOperation = "source-over";
      } else if (this.mode === "overlay") {
        pen.globalAlpha = this.values.overlay;
        pen.drawImage(this.sheet, 0, 0);
        pen.globalAlpha = 1;
      } else {
        const edge = Math.round(this.values.compare * width);
        if (edge < width) {
          pen.globalAlpha = 0.75;
          pen.drawImage(this.sheet, edge, 0, width - edge, height, edge, 0, width - edge, height);
          pen.globalAlpha = 1;
        }
        pen.fillStyle = "#fff";
        pen.fillRect(edge - width / 400, 0, Math.max(2, width / 200), height);
      }
    }
  }

  /* A drawing of the U whose cells open: children are the drawing and one section[data-cell] for each cell. */
  class ArchitectureView extends HTMLElement {
    connectedCallback() {
      if (this.watch) return;
      this.mark();
      this.watch = new MutationObserver(() => this.mark()); // another network changes what is inside
      this.watch.observe(this, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-cell", "role"] });
      this.addEventListener("click", (event) => this.open(event.target.closest("[data-cell]:not(section)")));
      this.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        const cell = event.target.closest("svg [data-cell]");
        if (cell) { event.preventDefault(); this.open(cell); }
      });
    }

    /* Card and miniature both belong to a cell; the first of them takes the keyboard. */
    mark() {
      const seen = new Set();
      for (const cell of this.querySelectorAll("svg [data-cell]")) {
        cell.style.cursor = "pointer";
        if (!seen.has(cell.dataset.cell) && cell.getAttribute("role") !== "button") {
          cell.setAttribute("role", "button");
          cell.setAttribute("tabindex", "0");
          cell.setAttribute("aria-label", `Open cell ${cell.dataset.cell}`);
        }
        seen.add(cell.dataset.cell);
      }
    }

    open(cell) {
      if (!cell) return;
      for (const section of this.querySelectorAll("section[data-cell]"))
        section.hidden = section.dataset.cell !== cell.dataset.cell;
      for (const button of this.querySelectorAll("button[data-cell]"))
        button.setAttribute("aria-pressed", button.dataset.cell === cell.dataset.cell);
      this.querySelector("section:not([hidden])")?.scrollIntoView({ block: "nearest" });
    }
  }

  if (!customElements.get("segmentation-view")) {
    customElements.define("segmentation-view", SegmentationView);
    customElements.define("architecture-view", ArchitectureView);
  }

  /* The address that a person typed, fetched by this browser and put into the picture as if it was dropped. */
  window.fetchPicture = async (address) => {
    const say = (text) => [text];
    let url;
    try { url = new URL(address.trim()); } catch { return say("Type a whole web address, such as https://example.org/cat.jpg."); }
    if (!["http:", "https:"].includes(url.protocol)) return say("Only http and https addresses can be fetched.");
    let blob;
    try {
      const answer = await fetch(url, { credentials: "omit", referrerPolicy: "no-referrer" });
      if (!answer.ok) return say(`That site answers ${answer.status}. Save the picture and upload it.`);
      blob = await answer.blob();
    } catch { return say("That site does not let this page read its pictures. Save the picture and upload it."); }
    if (blob.size > 20 * 2 ** 20) return say("The picture is larger than 20 MB.");
    let name = url.pathname.split("/").pop() || "picture";
    try { name = decodeURIComponent(name); } catch { /* a lone percent sign: the name as it is */ }
    document.querySelector("#picture button[aria-label='Remove Image']")?.click();
    let input = null;
    for (let turn = 0; turn < 40 && !(input = document.querySelector("#picture input[type=file]")); turn++)
      await new Promise((wake) => setTimeout(wake, 50));
    if (!input) return say("There is no place for the picture now; try again.");
    const transfer = new DataTransfer();
    transfer.items.add(new File([blob], name.slice(0, 80), { type: blob.type }));
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
    return say("");
  };
})();
