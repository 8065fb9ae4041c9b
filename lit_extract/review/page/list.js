// The chosen captions: only the visible ones are in the page, and only those nearby are requested from the server.

import { get } from "./server.js";

const HEIGHT = 62; // pixels of an item, as in style.css
const PAGE = 100; // rows requested at once
const PAGES_AT_MOST = 50; // kept
const MARGIN = 6; // items above and below the visible ones

export const MARKS = { open: "", accepted: "✓", edited: "✎" };

export class List {
  constructor(element, onPick) {
    this.element = element;
    this.rows = element.firstElementChild;
    this.onPick = onPick;
    this.reset({ list: "", total: 0 });
    element.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw()).observe(element);
    this.rows.addEventListener("click", (event) => {
      const item = event.target.closest("[role=option]");
      if (item) this.onPick(Number(item.dataset.place));
    });
  }

  reset({ list, total }) {
    [this.name, this.total, this.place] = [list, total, -1];
    this.pages = new Map(); // number of the page -> promise of its rows
    this.known = new Map(); // place -> row
    this.items = new Map(); // place -> element
    this.rows.replaceChildren();
    this.rows.style.height = `${total * HEIGHT}px`;
    this.draw();
  }

  // The row at a place, requested if necessary.
  async rowAt(place) {
    await this.load(Math.floor(place / PAGE));
    return this.known.get(place);
  }

  load(page) {
    if (!this.pages.has(page)) {
      const pages = this.pages;
      const asked = get("rows", { list: this.name, from: page * PAGE, count: PAGE }).then(({ rows }) => {
        if (pages !== this.pages) return; // another list since
        rows.forEach((row, k) => this.known.set(page * PAGE + k, row));
        this.draw();
      });
      asked.catch(() => pages.delete(page)); // ask again next time
      pages.set(page, asked);
      if (pages.size > PAGES_AT_MOST) this.forget(pages.keys().next().value);
    }
    return this.pages.get(page);
  }

  forget(page) {
    this.pages.delete(page);
    for (let place = page * PAGE; place < (page + 1) * PAGE; place++) this.known.delete(place);
  }

  // A row has changed.
  update(row) {
    for (const [place, known] of this.known) {
      if (known.row === row.row) {
        this.known.set(place, row);
        if (this.items.has(place)) this.fill(this.items.get(place), place);
      }
    }
  }

  pick(place) {
    const before = this.items.get(this.place);
    this.place = place;
    if (before) before.setAttribute("aria-selected", "false");
    const top = place * HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + HEIGHT || top + 2 * HEIGHT > scrollTop + clientHeight) {
      this.element.scrollTop = top - clientHeight / 2 + HEIGHT / 2;
    }
    this.draw();
    this.items.get(place)?.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", `place-${place}`);
  }

  draw() {
    const first = Math.max(0, Math.floor(this.element.scrollTop / HEIGHT) - MARGIN);
    const last = Math.min(
      this.total - 1,
      Math.ceil((this.element.scrollTop + this.element.clientHeight) / HEIGHT) + MARGIN,
    );
    for (const [place, item] of this.items) {
      if (place < first || place > last) {
        item.remove();
        this.items.delete(place);
      }
    }
    for (let place = first; place <= last; place++) {
      if (!this.items.has(place)) {
        const item = document.createElement("div");
        item.setAttribute("role", "option");
        item.id = `place-${place}`;
        item.dataset.place = place;
        item.style.transform = `translateY(${place * HEIGHT}px)`;
        this.items.set(place, item);
        this.rows.append(item);
        this.fill(item, place);
      } else if (!this.items.get(place).dataset.row) {
        this.fill(this.items.get(place), place);
      }
      if (!this.known.has(place)) this.load(Math.floor(place / PAGE)).catch(() => {});
    }
  }

  fill(item, place) {
    const row = this.known.get(place);
    item.setAttribute("aria-selected", String(place === this.place));
    if (!row) return;
    item.dataset.row = row.row;
    item.dataset.status = row.status;
    const id = document.createElement("b");
    id.textContent = row.id;
    const mark = document.createElement("i");
    mark.textContent = MARKS[row.status];
    const flags = document.createElement("span");
    flags.textContent = row.flags.join(", ");
    const text = document.createElement("p");
    text.dir = "auto";
    text.textContent = row.text || "no text";
    item.replaceChildren(id, flags, mark, text);
  }
}
