"use strict";

const masks = document.querySelector("[name=masks]");
const viewer = document.getElementById("viewer");
const help = document.getElementById("help");
const order = new Intl.Collator(undefined, { numeric: true });

/** A list of the page that is searched, sorted and shown in pages; its elements are all there. */
class Listing {
  constructor(section) {
    this.section = section;
    this.form = section.querySelector("form");
    this.box = section.querySelector(".items");
    this.pager = section.querySelector(".pager");
    this.size = Number(section.dataset.page);
    const rest = section.querySelector("template").content;
    this.all = [...this.box.children, ...rest.children].map((element) => {
      return { ...JSON.parse(element.dataset.row), element };
    });
    for (const select of this.form.querySelectorAll("[name=folder], [name=error_code]")) {
      this.addOptions(select);
    }
    this.form.hidden = false;
    this.form.addEventListener("input", () => this.search());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.form.querySelector(".csv").addEventListener("click", () => this.saveCsv());
    this.pager.querySelector(".previous").addEventListener("click", () => this.turn(-1));
    this.pager.querySelector(".next").addEventListener("click", () => this.turn(1));
    this.search();
  }

  /** Offer each value of a column, with its count. */
  addOptions(select) {
    const counts = new Map();
    for (const { [select.name]: value } of this.all) {
      if (value) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    const values = [...counts.keys()].sort(order.compare);
    const [first, last] = [values[0] ?? "", values.at(-1) ?? ""];
    let same = 0;
    while (same < first.length && first[same] === last[same]) same += 1;
    const start = values.length > 1 ? first.slice(0, same).lastIndexOf("/") + 1 : 0;
    for (const value of values) {
      select.add(new Option(`${value.slice(start)} (${counts.get(value)})`, value));
    }
    select.parentElement.hidden = values.length < 2;
  }

  search() {
    const { query, label, set, sort, ...columns } = Object.fromEntries(new FormData(this.form));
    delete columns.masks;
    const wanted = query.toLowerCase();
    const found = this.all.filter((row) =>
      [row.name, row.folder, row.error_message].join(" ").toLowerCase().includes(wanted)
      && (!set || row[set])
      && Object.entries(columns).every(([name, value]) => !value || row[name] === value));
    this.countLabels(found);
    this.found = found.filter((row) => !label || label === "all" || row.label === label);
    if (sort) this.found.sort(by(sort));
    this.show(0);
  }

  countLabels(found) {
    for (const radio of this.form.querySelectorAll("[name=label]")) {
      const count = found.filter((row) => ["all", row.label].includes(radio.value)).length;
      radio.parentElement.querySelector("b").textContent = count.toLocaleString("en");
    }
  }

  show(page) {
    const pages = Math.max(1, Math.ceil(this.found.length / this.size));
    this.page = Math.min(Math.max(page, 0), pages - 1);
    const from = this.page * this.size;
    this.box.replaceChildren(
      ...this.found.slice(from, from + this.size).map((row) => row.element));
    const count = this.found.length.toLocaleString("en");
    this.form.querySelector("output").textContent =
      this.found.length ? `${count} shown` : "nothing matches";
    this.pager.hidden = pages === 1;
    this.pager.querySelector(".place").textContent = `Page ${this.page + 1} of ${pages}`;
    this.pager.querySelector(".previous").disabled = this.page === 0;
    this.pager.querySelector(".next").disabled = this.page === pages - 1;
  }

  turn(step) {
    const before = this.page;
    this.show(this.page + step);
    if (this.page !== before) this.section.scrollIntoView();
  }

  saveCsv() {
    const columns = this.section.dataset.columns.split(" ");
    const lines = this.found.map((row) => columns.map((name) => cell(row[name])).join(","));
    const blob = new Blob([[columns.join(","), ...lines, ""].join("\r\n")], { type: "text/csv" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = this.section.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}

/** Return the order of a column; a minus before its name is for the highest first. */
function by(sort) {
  const [name, sign] = sort.startsWith("-") ? [sort.slice(1), -1] : [sort, 1];
  const compare = (a, b) => typeof a === "string" ? order.compare(a, b) : (a ?? -1) - (b ?? -1);
  return (a, b) => sign * compare(a[name], b[name]);
}

/** Return a value for CSV; a spreadsheet would run text that begins as a formula. */
function cell(value) {
  if (typeof value !== "string") return value ?? "";
  const text = /^[=+\-@]/.test(value) ? `'${value}` : value;
  return `"${text.replaceAll('"', '""')}"`;
}

/** One picture as large as the window allows, with its facts. */
class Viewer {
  constructor(listing) {
    this.listing = listing;
    this.toggle = viewer.querySelector(".toggle");
    this.opacity = viewer.querySelector("[name=opacity]");
    listing.box.addEventListener("click", (event) => {
      const element = event.target.closest(".picture")?.closest(".card");
      if (element) this.show(listing.found.findIndex((row) => row.element === element));
    });
    viewer.querySelector(".previous").addEventListener("click", () => this.show(this.place - 1));
    viewer.querySelector(".next").addEventListener("click", () => this.show(this.place + 1));
    viewer.addEventListener("close", () => this.leave());
    this.toggle.addEventListener("click", () => this.setMask(this.layers.matches(".bare")));
    this.opacity.addEventListener("input", () => this.setOpacity(this.opacity.value));
  }

  show(place) {
    const row = this.listing.found[place];
    if (!row) return;
    this.place = place;
    this.layers = row.element.querySelector(".layers").cloneNode(true);
    viewer.querySelector(".stage").replaceChildren(this.layers);
    const text = row.element.querySelector(".text").cloneNode(true);
    viewer.querySelector("h2").textContent = text.querySelector("h3").textContent;
    text.querySelector("h3").remove();
    const facts = [...row.element.querySelectorAll("details > :not(summary)")];
    const copies = facts.map((element) => element.cloneNode(true));
    viewer.querySelector(".facts-of").replaceChildren(text, ...copies);
    viewer.className = row.label;
    const all = this.listing.found.length;
    viewer.querySelector(".place").textContent = `${place + 1} of ${all}`;
    viewer.querySelector(".previous").disabled = place === 0;
    viewer.querySelector(".next").disabled = place === all - 1;
    this.toggle.disabled = this.opacity.disabled = !this.layers.querySelector(".mask");
    const shown = { believed: !this.layers.matches(".doubtful"), every: true, none: false };
    this.setMask(shown[masks.value]);
    if (!viewer.open) viewer.showModal();
  }

  /** Show or hide the mask of the picture that is open. */
  setMask(shown) {
    this.layers.classList.remove("doubtful");
    this.layers.classList.toggle("bare", !shown);
    this.toggle.setAttribute("aria-pressed", shown && !this.toggle.disabled);
  }

  setOpacity(value) {
    this.opacity.value = value;
    viewer.style.setProperty("--opacity", this.opacity.value);
  }

  /** Go on in the gallery at the picture that was open last. */
  leave() {
    this.listing.show(Math.floor(this.place / this.listing.size));
    this.listing.found[this.place].element.querySelector(".picture").focus();
  }
}

/** Return the keys of the page and what they do. */
function keysOf(pictures, open) {
  const label = (place) => () => pictures.form.querySelectorAll("[name=label]")[place].click();
  const keys = { "?": () => help.open || help.showModal() };
  if (viewer.open) {
    const by = (step) => open.setOpacity(Number(open.opacity.value) + step);
    return {
      ...keys,
      ArrowLeft: () => open.show(open.place - 1),
      ArrowRight: () => open.show(open.place + 1),
      m: () => open.toggle.click(),
      "-": () => by(-0.1),
      "+": () => by(0.1),
      "=": () => by(0.1),
    };
  }
  return {
    ...keys,
    ArrowLeft: () => pictures.turn(-1),
    ArrowRight: () => pictures.turn(1),
    Enter: () => pictures.box.querySelector(".picture")?.click(),
    m: () => showMasks(masks.value === "none" ? "believed" : "none"),
    "/": () => pictures.form.query.focus(),
    1: label(0), 2: label(1), 3: label(2), 4: label(3),
  };
}

function showMasks(which) {
  masks.value = which;
  document.body.dataset.masks = which;
}

function press(event, pictures, open) {
  const typing = event.target.matches("input[type=search], select");
  const own = event.key.startsWith("Arrow") && event.target.matches("input");
  const pressed = event.key === "Enter" && event.target.matches("button, input, summary");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || own || pressed) return;
  const action = keysOf(pictures, open)[event.key];
  if (!action || (help.open && event.key !== "?")) return;
  event.preventDefault();
  action();
}

for (const dialog of [viewer, help]) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
}
const failures = document.getElementById("failures");
if (failures) new Listing(failures);
const gallery = document.getElementById("pictures");
if (gallery) {
  document.body.classList.add("scripted");
  const pictures = new Listing(gallery);
  const open = new Viewer(pictures);
  masks.addEventListener("input", () => showMasks(masks.value));
  showMasks(masks.value);
  gallery.querySelector("button.keys").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => press(event, pictures, open));
}
