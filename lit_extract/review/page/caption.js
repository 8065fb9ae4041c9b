// One caption and its image: the row on display, and the text that a person is writing.

import { MARKS } from "./list.js";
import { compare } from "./words.js";

const element = (id) => document.getElementById(id);
const STATUS = { open: "to do", accepted: "accepted", edited: "edited" };
const DRAFTS = "drafts"; // key in the tab's storage: a reload does not lose unsaved text

export class Caption {
  constructor(version) {
    this.version = version;
    this.row = null;
    this.text = element("text");
    this.drafts = new Map(JSON.parse(sessionStorage.getItem(DRAFTS + version) ?? "[]"));
    this.text.addEventListener("input", () => this.onInput());
    window.addEventListener("resize", () => this.grow());
  }

  // The content of a decision: the text, if it differs from the row's, and the revision that the person has seen.
  get decision() {
    const draft = this.drafts.get(this.row.row);
    return { row: this.row.row, text: draft?.text ?? null, revision: draft?.revision ?? this.row.revision };
  }

  show(row, place, total) {
    const moved = this.row?.row !== row.row;
    this.row = row;
    element("caption").hidden = false;
    element("stimulus").textContent = row.id;
    element("place").textContent = `${(place + 1).toLocaleString("en")} of ${total.toLocaleString("en")}`;
    const mark = element("mark");
    mark.textContent = `${MARKS[row.status]} ${STATUS[row.status]}`.trim();
    mark.dataset.status = row.status;
    element("flags").replaceChildren(
      ...row.flags.map((flag) => item(flag, "")),
      ...row.resolved.map((flag) => item(flag, "resolved")),
    );
    this.showChoices();
    if (moved) this.showImage();
    const draft = this.drafts.get(row.row);
    this.setText(draft?.text ?? row.text);
    if (this.drafts.has(row.row) && draft.revision !== row.revision) {
      element("other").hidden = false;
      element("other-text").textContent = row.text;
    } else {
      element("other").hidden = true;
    }
  }

  // The image of another row must never appear above this caption: remove the old one before requesting the new one.
  showImage() {
    const figure = element("figure");
    const why = element("no-image");
    figure.querySelector("img")?.remove();
    why.hidden = true;
    const image = new Image();
    const { row } = this.row;
    image.alt = `Image ${this.row.id}`;
    image.dataset.row = row;
    image.addEventListener("error", async () => {
      if (!image.isConnected) return;
      let reason = "The server does not answer.";
      try {
        const response = await fetch(image.src);
        reason = response.ok ? "This image is broken." : await response.text();
      } catch { /* as above */ }
      if (!image.isConnected) return;
      image.remove();
      why.textContent = reason;
      why.hidden = false;
    });
    image.src = this.imageOf(row);
    figure.prepend(image);
  }

  imageOf(row) {
    return `/image/${row}?v=${this.version}`;
  }

  showChoices() {
    const { choices, text } = this.row;
    element("choices").hidden = choices.length === 0;
    element("choices").replaceChildren(
      ...choices.map((choice, k) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.choice = choice;
        button.setAttribute("aria-pressed", String(choice === text));
        const label = document.createElement("span");
        label.textContent = `${choice} `;
        const key = document.createElement("kbd");
        key.textContent = k < 9 ? String(k + 1) : "";
        button.append(label, key);
        return button;
      }),
    );
  }

  setText(text) {
    this.text.value = text;
    this.onInput();
  }

  onInput() {
    const { row, revision, text, original } = this.row;
    const draft = this.drafts.get(row);
    if (this.text.value === plain(text)) this.drafts.delete(row);
    else this.drafts.set(row, { text: this.text.value, revision: draft?.revision ?? revision });
    sessionStorage.setItem(DRAFTS + this.version, JSON.stringify([...this.drafts]));
    const unsaved = this.drafts.has(row);
    element("panel").classList.toggle("unsaved", unsaved);
    element("accept-word").textContent = unsaved ? "Save" : "Accept";
    this.showDifference(plain(original), this.text.value);
    this.grow();
  }

  showDifference(before, after) {
    const place = element("difference");
    element("restore").hidden = before === after;
    const parts = (before === after ? [] : compare(before, after)).map(([kind, text]) => {
      const part = document.createElement({ same: "span", gone: "del", new: "ins" }[kind]);
      part.textContent = text;
      return part;
    });
    place.replaceChildren(...parts);
  }

  // The draft is now based on the row's newest revision: the person has seen the other text.
  seen() {
    const draft = this.drafts.get(this.row.row);
    if (draft) draft.revision = this.row.revision;
  }

  discard() {
    const had = this.drafts.delete(this.row.row);
    if (had) {
      element("other").hidden = true;
      this.setText(this.row.text);
    }
    return had;
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight + 2}px`;
  }
}

// A text field has only one kind of line ends.
function plain(text) {
  return text.replace(/\r\n?/g, "\n");
}

function item(text, kind) {
  const flag = document.createElement("li");
  flag.textContent = text;
  flag.className = kind;
  if (kind) flag.title = "the text no longer has this flag";
  return flag;
}
