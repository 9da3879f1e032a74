"use strict";

const find = (name) => document.getElementById(name);
const stage = find("stage");
const TINT = "rgb(255, 0, 153)";
const OPAQUE = 127; // pixels of the sheet above it are in the mask
const CLICK = 5; // pixels that a pointer may move in a click
const AHEAD = 2; // pictures that are fetched before they are asked for
const SAID = {
  manipulated: "manipulated, mask right",
  mask_wrong: "manipulated, mask wrong",
  authentic: "authentic",
  unsure: "unsure",
};

/** The picture and its mask in the stage: where they are, how large, and what lies over them. */
class View {
  constructor() {
    this.element = find("view");
    this.width = this.height = this.scale = 1;
    new ResizeObserver(() => this.fit()).observe(stage);
  }

  /** Show a picture whose sheet has a size, as large as the stage allows. */
  open(url, [width, height]) {
    [this.width, this.height] = [width, height];
    this.element.style.width = `${width}px`;
    this.element.style.height = `${height}px`;
    find("outline").setAttribute("viewBox", `0 0 ${width} ${height}`);
    find("picture").src = url;
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = stage;
    const room = 0.98 * Math.min(clientWidth / this.width, clientHeight / this.height);
    this.scale = this.least = Math.min(room, 8);
    this.x = (clientWidth - this.width * this.scale) / 2;
    this.y = (clientHeight - this.height * this.scale) / 2;
    this.place();
  }

  /** Zoom by a factor around a point of the stage; without one, its middle. */
  zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.least / 2), 32);
    this.x = x - (x - this.x) * scale / this.scale;
    this.y = y - (y - this.y) * scale / this.scale;
    this.scale = scale;
    this.place();
  }

  move(x, y) {
    this.x += x;
    this.y += y;
    this.place();
  }

  place() {
    const inside = (at, size, room) => Math.min(Math.max(at, 60 - size * this.scale), room - 60);
    this.x = inside(this.x, this.width, stage.clientWidth);
    this.y = inside(this.y, this.height, stage.clientHeight);
    this.element.style.transform = `translate(${this.x}px, ${this.y}px) scale(${this.scale})`;
    this.element.classList.toggle("close", this.scale > 2);
    find("zoom").textContent = this.width > 1 ? `${Math.round(100 * this.scale)}%` : "Fit";
  }

  /** Return the point of the sheet below a pointer. */
  point(event) {
    const box = stage.getBoundingClientRect();
    return [(event.clientX - box.left - this.x) / this.scale,
      (event.clientY - box.top - this.y) / this.scale];
  }
}

/** The mask: the one that was found, and what the reviewer did to it, step by step. */
class Sheet {
  constructor(changed) {
    this.changed = changed;
    this.canvas = find("sheet");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.open([1, 1], null);
  }

  open([width, height], found) {
    [this.canvas.width, this.canvas.height] = [width, height];
    this.found = found;
    this.heat = null;
    this.steps = [];
    this.redraw();
  }

  /** Do a step, and keep it, so that it can be undone. */
  add(step) {
    this.steps.push(step);
    this.draw(step);
    this.changed();
  }

  undo() {
    this.steps.pop();
    this.redraw();
    this.changed();
  }

  redraw() {
    this.clear();
    if (this.found) this.context.drawImage(this.found, 0, 0);
    for (const step of this.steps) this.draw(step);
  }

  clear() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  draw(step) {
    const { context } = this;
    context.globalCompositeOperation = step.erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = TINT;
    if (step.kind === "clear") this.clear();
    if (step.kind === "threshold") this.threshold(step.value);
    if (step.kind === "drop") this.drop(step.point);
    if (step.kind === "polygon") {
      context.beginPath();
      for (const point of step.points) context.lineTo(...point);
      context.fill();
    }
    if (step.kind === "stroke") this.stroke(step, step.points);
    context.globalCompositeOperation = "source-over";
  }

  stroke(step, points) {
    const { context } = this;
    context.globalCompositeOperation = step.erase ? "destination-out" : "source-over";
    context.fillStyle = context.strokeStyle = TINT;
    Object.assign(context, { lineWidth: step.width, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  pixels() {
    return this.context.getImageData(0, 0, this.canvas.width, this.canvas.height);
  }

  isMasked([x, y]) {
    return this.context.getImageData(Math.floor(x), Math.floor(y), 1, 1).data[3] > OPAQUE;
  }

  /** Remove the connected pixels around a point. */
  drop([x, y]) {
    const image = this.pixels();
    const { width, height, data } = image;
    const left = [Math.floor(y) * width + Math.floor(x)];
    while (left.length) {
      const at = left.pop();
      if (data[4 * at + 3] === 0) continue;
      data[4 * at + 3] = 0;
      if (at % width > 0) left.push(at - 1);
      if (at % width < width - 1) left.push(at + 1);
      if (at >= width) left.push(at - width);
      if (at < width * (height - 1)) left.push(at + width);
    }
    this.context.putImageData(image, 0, 0);
  }

  /** Mask the pixels whose probability reaches a value from 0 to 1. */
  threshold(value) {
    const image = this.context.createImageData(this.canvas.width, this.canvas.height);
    const pixels = new Uint32Array(image.data.buffer);
    this.heat.forEach((probability, at) => {
      if (probability >= 255 * value) pixels[at] = 0xff9900ff;
    });
    this.context.putImageData(image, 0, 0);
  }

  /** Keep the probability of each pixel, of a grey picture of the sheet's size. */
  setHeat(bitmap) {
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    this.heat = new Uint8Array(data.length / 4);
    for (let at = 0; at < this.heat.length; at += 1) this.heat[at] = data[4 * at];
  }
}

/** What pointers do in the stage: move and zoom, or what the tool is for. */
class Tools {
  constructor(view, sheet) {
    Object.assign(this, { view, sheet, tool: "", step: null, polygon: [], pointers: new Map() });
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.moved(event));
    for (const kind of ["pointerup", "pointercancel"]) {
      stage.addEventListener(kind, (event) => this.up(event));
    }
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      const speed = event.ctrlKey ? 0.01 : 0.0015;
      view.zoom(Math.exp(-event.deltaY * speed), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
  }

  /** Take a tool: brush, eraser, polygon or none; the same again puts it away. */
  take(tool) {
    if (tool === "polygon" && this.tool === tool && this.polygon.length > 2) return this.close();
    this.setPolygon([]);
    this.tool = this.tool === tool ? "" : tool;
    stage.dataset.tool = this.tool;
    for (const button of document.querySelectorAll("[data-tool][aria-pressed]")) {
      button.setAttribute("aria-pressed", button.dataset.tool === this.tool);
    }
    find("sizes").hidden = !["brush", "eraser"].includes(this.tool);
    return undefined;
  }

  down(event) {
    stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.start = event;
    this.travelled = this.pointers.size > 1;
    const draws = ["brush", "eraser"].includes(this.tool) && event.button === 0;
    if (this.step) this.cancel();
    if (draws && this.pointers.size === 1) {
      const width = find("size").valueAsNumber / this.view.scale;
      const point = this.view.point(event);
      this.step = { kind: "stroke", erase: this.tool === "eraser", width, points: [point] };
      this.sheet.stroke(this.step, [point]);
    }
  }

  /** Forget a stroke: a second finger came, which zooms. */
  cancel() {
    this.step = null;
    this.sheet.redraw();
  }

  moved(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    if (Math.hypot(event.clientX - this.start.clientX, event.clientY - this.start.clientY) > CLICK) {
      this.travelled = true;
    }
    if (this.pointers.size > 1) return this.pinch(event, before);
    if (this.step) {
      const points = event.getCoalescedEvents?.().map((each) => this.view.point(each)) ?? [];
      points.push(this.view.point(event));
      this.sheet.stroke(this.step, [this.step.points.at(-1), ...points]);
      this.step.points.push(...points);
    } else if (this.travelled) {
      stage.classList.add("dragged");
      this.view.move(event.clientX - before.clientX, event.clientY - before.clientY);
    }
    return undefined;
  }

  pinch(event, before) {
    const other = [...this.pointers.values()].find((each) => each.pointerId !== event.pointerId);
    const far = (each) => Math.hypot(each.clientX - other.clientX, each.clientY - other.clientY);
    const box = stage.getBoundingClientRect();
    this.view.move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    const middle = [(event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2];
    this.view.zoom(far(event) / Math.max(far(before), 1), middle[0] - box.left, middle[1] - box.top);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    stage.classList.remove("dragged");
    if (this.step) {
      const step = this.step;
      this.step = null;
      this.sheet.steps.push(step);
      this.sheet.changed();
    } else if (!this.travelled && event.button === 0 && event.type === "pointerup") {
      this.click(this.view.point(event));
    }
  }

  click([x, y]) {
    if (this.tool === "polygon") {
      const [first] = this.polygon;
      const near = first && Math.hypot(x - first[0], y - first[1]) < 10 / this.view.scale;
      if (near && this.polygon.length > 2) this.close();
      else this.setPolygon([...this.polygon, [Math.round(x), Math.round(y)]]);
    } else if (!this.tool && this.sheet.isMasked([x, y])) {
      this.sheet.add({ kind: "drop", point: [x, y] });
    }
  }

  setPolygon(points) {
    this.polygon = points;
    find("outline").firstElementChild.setAttribute("points", points.join(" "));
  }

  /** Mask the inside of the polygon. */
  close() {
    if (this.polygon.length > 2) this.sheet.add({ kind: "polygon", points: this.polygon });
    this.setPolygon([]);
  }
}

/** The queue: the picture that is open, and the decisions. */
class Review {
  constructor(view, sheet, tools) {
    Object.assign(this, { view, sheet, tools, undoable: [], fetched: new Map(), busy: false });
  }

  async begin() {
    const { reviewer, run, pictures } = await answerOf(await fetch("queue"));
    document.title = `Review of ${run} by ${reviewer}`;
    this.all = this.listed = pictures;
    this.addFilters();
    const open = pictures.findIndex((each) => !each.decision);
    await this.show(Math.max(open, 0));
  }

  addFilters() {
    const select = find("filter");
    this.filters = {
      "all": () => true,
      "not decided": (each) => !each.decision,
      "manipulated": (each) => each.label === "manipulated",
      "uncertain": (each) => each.label === "uncertain",
      "authentic": (each) => each.label === "authentic",
      "reviewers disagree": (each) => each.said.length > 0,
    };
    for (const name of Object.keys(this.filters)) select.add(new Option(name, name));
    select.addEventListener("input", () => this.filter());
    this.count();
  }

  /** List the pictures that the filter leaves, and open the first of them. */
  filter() {
    const listed = this.all.filter(this.filters[find("filter").value]);
    if (!listed.length) {
      this.say("No picture is like that.", true);
      find("filter").value = "all";
      return this.filter();
    }
    this.listed = listed;
    return this.show(0);
  }

  count() {
    for (const option of find("filter").options) {
      const count = this.all.filter(this.filters[option.value]).length;
      option.textContent = `${option.value} (${count})`;
    }
    const decided = this.all.filter((each) => each.decision).length;
    find("progress").max = this.all.length;
    find("progress").value = decided;
    find("decided").textContent = `${decided} of ${this.all.length} decided`;
  }

  async show(place) {
    if (place < 0 || place >= this.listed.length) return;
    this.place = place;
    const item = this.item = this.listed[place];
    this.isShown = false;
    this.tools.take("");
    this.tools.setPolygon([]);
    this.sheet.open([1, 1], null);
    find("view").hidden = find("problem").hidden = true;
    find("loading").hidden = false;
    this.describe(item);
    const [picture, found] = await Promise.all([
      this.load(item), this.maskOf(item).catch(() => null)]);
    if (this.item !== item) return;
    if (picture.url) {
      this.view.open(picture.url, item.sheet);
      this.sheet.open(item.sheet, found);
      await find("picture").decode().catch(() => null);
      if (this.item !== item) return;
    }
    find("loading").hidden = true;
    find("view").hidden = !picture.url;
    find("problem").hidden = Boolean(picture.url);
    find("problem").textContent = `This picture cannot be shown: ${picture.error}`;
    this.isShown = true;
    this.ahead();
  }

  /** Fetch a picture, once; it may be on its way already. */
  load(item) {
    if (!this.fetched.has(item.id)) this.fetched.set(item.id, fetchPicture(item.id));
    return this.fetched.get(item.id);
  }

  ahead() {
    const near = this.listed.slice(Math.max(this.place - 1, 0), this.place + AHEAD + 1);
    const wanted = new Set(near.map((each) => each.id));
    for (const [id, picture] of this.fetched) {
      if (wanted.has(id)) continue;
      this.fetched.delete(id);
      picture.then(({ url }) => url && URL.revokeObjectURL(url));
    }
    near.forEach((each) => this.load(each));
  }

  async maskOf(item) {
    if (!item.has_mask && !item.has_own_mask) return null;
    return createImageBitmap(await blobOf(await fetch(`masks/${item.id}`)));
  }

  describe(item) {
    find("place").textContent = `Picture ${this.place + 1} of ${this.listed.length}`;
    find("previous").disabled = this.place === 0;
    find("next").disabled = this.place === this.listed.length - 1;
    find("score").textContent = item.score.toFixed(3);
    find("label").textContent = item.label;
    find("label").className = `chip ${item.label}`;
    find("name").textContent = find("picture").alt = item.name;
    find("folder").textContent = item.folder;
    const drawn = item.shown_for === "sample" ? ["A random picture of this label."] : [];
    find("reasons").textContent = [...item.reasons, ...drawn].join(" ");
    find("thresholds").hidden = !item.has_heat;
    find("threshold").value = item.threshold ?? 0.5;
    find("thresholds").querySelector("output").textContent = "";
    find("note").value = item.note;
    find("facts").replaceChildren(...Object.entries(item.facts).map(fact));
    this.describeState(item);
  }

  describeState(item) {
    for (const button of document.querySelectorAll("[data-decision]")) {
      button.setAttribute("aria-pressed", button.dataset.decision === item.decision);
    }
    const said = item.said.map(([who, decision]) => `${who}: ${SAID[decision]}`);
    find("disagree").hidden = !said.length;
    find("disagree").textContent = `Reviewers disagree. ${said.join("; ")}.`;
  }

  async decide(decision) {
    const { item, sheet } = this;
    if (!this.isShown) return; // nobody decides about what is not seen yet
    if (!find("problem").hidden && decision !== "unsure") {
      this.say("Nobody has seen this picture: unsure (4), or the next one.", true);
      return;
    }
    const mask = decision === "manipulated" && sheet.steps.length
      ? sheet.canvas.toDataURL("image/png") : null;
    if (!await this.post(item, { decision, mask, note: find("note").value })) return;
    this.undoable.push(item);
    this.say(`${item.name}: ${SAID[decision]}.`);
    if (this.place + 1 < this.listed.length) await this.show(this.place + 1);
    else this.say(`${item.name}: ${SAID[decision]}. That was the last picture.`);
  }

  /** Save a decision; return whether it is stored. */
  async post(item, body) {
    if (this.busy) return false;
    this.busy = true;
    try {
      const headers = { "Content-Type": "application/json" };
      const options = { method: "POST", headers, body: JSON.stringify(body) };
      Object.assign(item, await answerOf(await fetch(`decisions/${item.id}`, options)));
      this.count();
      if (this.item === item) this.describeState(item);
      return true;
    } catch (error) {
      this.say(`Not saved: ${error.message}`, true);
      return false;
    } finally {
      this.busy = false;
    }
  }

  /** Undo the last stroke, or else the last decision. */
  async undo() {
    if (this.tools.polygon.length) return this.tools.setPolygon(this.tools.polygon.slice(0, -1));
    if (this.sheet.steps.length) return this.sheet.undo();
    const item = this.undoable.pop() ?? (this.item.decision ? this.item : null);
    if (!item) return this.say("There is nothing to undo.");
    if (!await this.post(item, { decision: "withdrawn", note: "" })) return undefined;
    this.say(`${item.name}: the decision is withdrawn.`);
    if (!this.listed.includes(item)) this.listed = this.all;
    return this.show(this.listed.indexOf(item));
  }

  async setThreshold(value) {
    const { item, sheet } = this;
    if (!sheet.heat) {
      const bitmap = await createImageBitmap(await blobOf(await fetch(`heat/${item.id}`)));
      if (this.item !== item) return;
      sheet.setHeat(bitmap);
    }
    if (sheet.steps.at(-1)?.kind === "threshold") sheet.steps.pop();
    sheet.add({ kind: "threshold", value });
    find("thresholds").querySelector("output").textContent = value.toFixed(2);
  }

  say(text, isError = false) {
    find("status").textContent = text;
    find("status").classList.toggle("error", isError);
  }
}

function fact([name, value]) {
  const row = document.createElement("div");
  for (const [kind, text] of [["dt", name], ["dd", value]]) {
    row.append(Object.assign(document.createElement(kind), { textContent: text }));
  }
  return row;
}

/** Return the JSON of an answer; throw the error that it tells of. */
async function answerOf(response) {
  const type = response.headers.get("Content-Type") ?? "";
  const answer = type.startsWith("application/json") ? await response.json() : {};
  if (!response.ok) throw new Error(answer.error ?? `the server answers ${response.status}`);
  return answer;
}

async function blobOf(response) {
  if (!response.ok) await answerOf(response);
  return response.blob();
}

async function fetchPicture(id) {
  try {
    return { url: URL.createObjectURL(await blobOf(await fetch(`pictures/${id}`))) };
  } catch (error) {
    return { error: error.message };
  }
}

function setMask(shown) {
  find("mask").setAttribute("aria-pressed", shown);
  find("sheet").classList.toggle("off", !shown);
}

function setOpacity(value) {
  find("opacity").value = value;
  find("sheet").style.opacity = find("opacity").value;
}

/** Return the keys and what they do. */
function keysOf({ view, sheet, tools, review }) {
  const by = (input, step) => () => {
    input.valueAsNumber += step;
    input.dispatchEvent(new Event("input"));
  };
  const [opacity, size] = [find("opacity"), find("size")];
  return {
    1: () => review.decide("manipulated"),
    2: () => review.decide("mask_wrong"),
    3: () => review.decide("authentic"),
    4: () => review.decide("unsure"),
    u: () => review.undo(),
    ArrowLeft: () => review.show(review.place - 1),
    ArrowRight: () => review.show(review.place + 1),
    n: () => find("note").focus(),
    m: () => find("mask").click(),
    ",": by(opacity, -0.1),
    ".": by(opacity, 0.1),
    t: () => find("threshold").focus(),
    "+": () => view.zoom(1.25),
    "=": () => view.zoom(1.25),
    "-": () => view.zoom(0.8),
    0: () => view.fit(),
    w: () => view.move(0, 80),
    a: () => view.move(80, 0),
    s: () => view.move(0, -80),
    d: () => view.move(-80, 0),
    b: () => tools.take("brush"),
    e: () => tools.take("eraser"),
    p: () => tools.take("polygon"),
    "[": by(size, -4),
    "]": by(size, 4),
    x: () => sheet.add({ kind: "clear" }),
    Enter: () => tools.close(),
    Escape: () => (tools.polygon.length ? tools.setPolygon([]) : tools.take("")),
    "?": () => find("help").showModal(),
  };
}

function press(event, parts) {
  const { target, key } = event;
  if (find("help").open) return;
  if (target === find("note")) {
    if (["Enter", "Escape"].includes(key)) stage.focus();
    return;
  }
  const isUndo = key === "z" && (event.ctrlKey || event.metaKey);
  const own = target.matches("select")
    || (target.matches("input") && key.startsWith("Arrow"))
    || (key === "Enter" && target.matches("button, summary"));
  if (own || (!isUndo && (event.ctrlKey || event.metaKey || event.altKey))) return;
  const action = keysOf(parts)[isUndo ? "u" : key];
  if (!action || (event.repeat && "1234u".includes(key))) return;
  event.preventDefault();
  action();
}

function listen(parts) {
  const { view, sheet, tools, review } = parts;
  const click = (name, action) => find(name).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-decision]")) {
    button.addEventListener("click", () => review.decide(button.dataset.decision));
  }
  for (const button of document.querySelectorAll("button[data-tool]")) {
    button.addEventListener("click", () => tools.take(button.dataset.tool));
  }
  click("previous", () => review.show(review.place - 1));
  click("next", () => review.show(review.place + 1));
  click("undo", () => review.undo());
  click("clear", () => sheet.add({ kind: "clear" }));
  click("zoom-in", () => view.zoom(1.25));
  click("zoom-out", () => view.zoom(0.8));
  click("fit", () => view.fit());
  click("mask", () => setMask(find("sheet").classList.contains("off")));
  click("keys", () => find("help").showModal());
  find("opacity").addEventListener("input", () => setOpacity(find("opacity").value));
  find("threshold").addEventListener("input", (event) => {
    review.setThreshold(event.target.valueAsNumber)
      .catch((error) => review.say(`No threshold: ${error.message}`, true));
  });
  document.addEventListener("keydown", (event) => press(event, parts));
}

history.replaceState(null, "", "/"); // without the token
const view = new View();
const sheet = new Sheet(() => setMask(true));
const tools = new Tools(view, sheet);
const review = new Review(view, sheet, tools);
listen({ view, sheet, tools, review });
review.begin().catch((error) => review.say(`The review does not load: ${error.message}`, true));
