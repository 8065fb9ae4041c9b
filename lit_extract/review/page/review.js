// The page: the filters, the caption on display, the keys.

import { Caption } from "./caption.js";
import { List } from "./list.js";
import { get, post } from "./server.js";

const POLL = 2000; // milliseconds between checks for changes by others
const AHEAD = [1, 2, -1]; // images that are likely needed next

const element = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const STATUS = { "": "any", open: "to do", accepted: "accepted", edited: "edited" };

history.replaceState(null, "", `/${location.hash}`); // the token is in a cookie now and need not be visible

const list = new List(element("list"), (place) => go(place));
let about, caption, progress;
let busy = false; // while a decision is on its way
let chosen = 0; // counts choices of rows, to detect late answers
let seen = 0; // the revision up to which this page knows the changes

start();

async function start() {
  try {
    about = await get("start");
  } catch (error) {
    notice(error.message || "The server does not answer.");
    return;
  }
  caption = new Caption(about.version);
  element("captions").textContent = about.captions;
  element("dataset").textContent = about.dataset;
  element("id-column").textContent = about.id_column;
  element("command").textContent = about.command;
  document.title = `${about.captions} – review`;
  seen = about.progress.revision;
  showProgress(about.progress);
  element("status").replaceChildren(...["", ...about.statuses].map((value) => new Option(STATUS[value], value)));
  const hash = new URLSearchParams(location.hash.slice(1));
  const first = { flag: about.progress.flagged_left ? "flagged" : "", status: "open", search: "" };
  for (const id of ["flag", "status", "search"]) element(id).value = hash.get(id) ?? (hash.size ? "" : first[id]);
  await choose(Number(hash.get("row") ?? 0));
  setTimeout(poll, POLL);
}

// Choosing captions, and moving among them

async function choose(near = 0) {
  const [flag, status, search] = ["flag", "status", "search"].map((id) => element(id).value);
  const mine = ++chosen;
  const answer = await attempt(() => get("list", { flag, status, search, near }));
  if (!answer || mine !== chosen) return;
  showProgress(answer.progress);
  list.reset(answer);
  element("chosen").textContent = answer.total === 1 ? "1 caption" : `${number(answer.total)} captions`;
  element("caption").hidden = element("nothing").hidden = true;
  if (answer.total) await go(answer.place);
  else showNothing();
}

async function go(place) {
  if (place < 0 || place >= list.total) return false;
  list.pick(place);
  let row = list.known.get(place);
  if (!row) {
    element("caption").hidden = true; // show nothing rather than the previous row
    row = await attempt(() => list.rowAt(place));
    if (!row || list.place !== place) return false;
  }
  caption.show(row, place, list.total);
  const hash = { row: row.row };
  for (const id of ["flag", "status", "search"]) if (element(id).value) hash[id] = element(id).value;
  history.replaceState(null, "", `/#${new URLSearchParams(hash)}`);
  for (const step of AHEAD) {
    const near = list.known.get(place + step);
    if (near) new Image().src = caption.imageOf(near.row);
  }
  return true;
}

// Show a row: among the chosen rows, those that would be chosen now, or all.
async function goToRow(row) {
  const answer = list.total ? await attempt(() => get("place", { list: list.name, row })) : { place: null };
  if (!answer) return;
  if (answer.place !== null) {
    await go(answer.place);
    return;
  }
  await choose(row);
  if (list.total && caption.row?.row === row) return;
  for (const id of ["flag", "status", "search"]) element(id).value = "";
  await choose(row);
}

async function nextOpen() {
  const answer = list.total && (await attempt(() => get("place", { list: list.name, after: list.place })));
  if (!answer) return;
  if (answer.place === null) say("No caption is left to review among these.");
  else await go(answer.place);
}

function move(step) {
  if (caption.row && list.total) go(list.place + step);
}

// What a person does

async function decide(text = undefined) {
  if (busy || element("caption").hidden) return;
  busy = true;
  const decision = caption.decision;
  if (text !== undefined) decision.text = text;
  const { id } = caption.row;
  const { place } = list;
  try {
    const { row, progress: now } = await post("decide", decision);
    caption.drafts.delete(row.row);
    changed(row, now);
    say(`${id} ${row.status}`);
    if (list.place !== place) return; // the person has moved on already
    if (place + 1 < list.total) await go(place + 1);
    else {
      caption.show(row, place, list.total);
      say(`${id} ${row.status}. This was the last of these captions; n goes to one that is left.`);
    }
  } catch (error) {
    if (error.status === 409) conflict(error.content);
    else refused(error);
  } finally {
    busy = false;
  }
}

function conflict({ conflict: row, progress: now }) {
  changed(row, now);
  caption.show(row, list.place, list.total);
  caption.seen();
  say("Someone else has changed this caption. Nothing was saved; look again.");
}

async function undo() {
  if (busy) return;
  if (!progress.undo) {
    say("There is nothing to undo.");
    return;
  }
  busy = true;
  try {
    const { row, progress: now } = await post("undo", { revision: progress.undo.revision });
    caption.drafts.delete(row.row);
    changed(row, now);
    await goToRow(row.row);
    if (caption.row.row === row.row) caption.show(row, list.place, list.total);
    say(`${row.id}: undone`);
  } catch (error) {
    if (error.status === 409) {
      showProgress(error.content.progress);
      say(`Someone else has made a decision since. Undo now takes back the decision about ${progress.undo?.id}.`);
    } else refused(error);
  } finally {
    busy = false;
  }
}

function take() {
  if (!element("other").hidden) caption.discard();
}

function restore() {
  caption.setText(caption.row.original);
}

async function jump() {
  const id = element("jump").value.trim();
  if (!id) return;
  const answer = await attempt(() => get("find", { id }));
  if (!answer) return;
  if (answer.row === null) {
    say(`No caption has the id ${id}.`);
    return;
  }
  element("jump").value = "";
  element("jump").blur();
  await goToRow(answer.row);
}

// What others have done

async function poll() {
  try {
    if (!document.hidden) {
      const answer = await get("changes", { since: seen });
      seen = answer.progress.revision;
      showProgress(answer.progress);
      if (answer.rows === null) await choose(caption.row?.row ?? 0);
      else answer.rows.forEach((row) => changed(row, answer.progress));
    }
  } catch (error) {
    notice(
      error.status === 403
        ? "The server was restarted: open the address that it has printed."
        : "The server does not answer. All decisions are saved; to continue, start lit-extract review again.",
    );
  }
  setTimeout(poll, POLL);
}

function changed(row, now) {
  showProgress(now);
  list.update(row);
  if (caption.row?.row === row.row && caption.row.revision < row.revision && !busy) {
    caption.show(row, list.place, list.total);
    say(`${row.id} has been changed elsewhere.`);
  }
}

// What is shown around the caption

function showProgress(now) {
  if (progress && now.revision < progress.revision) return; // a late answer
  progress = now;
  const left = number(now.flagged_left);
  const bar = element("bar");
  [bar.max, bar.value] = now.flagged
    ? [now.flagged, now.flagged - now.flagged_left]
    : [Math.max(1, now.total), now.reviewed];
  const flagged = now.flagged ? `${left} of ${number(now.flagged)} flagged left · ` : "";
  element("progress").textContent = `${flagged}${number(now.reviewed)} of ${number(now.total)} reviewed`;
  const flag = element("flag");
  const options = [
    ["", "all captions"],
    ["flagged", `flagged (${left} left)`],
    ...Object.entries(now.left).map(([kind, count]) => [kind, `${kind} (${number(count)} left)`]),
  ];
  if (flag.options.length !== options.length) {
    const value = flag.value;
    flag.replaceChildren(...options.map(([key]) => new Option("", key)));
    flag.value = value;
  }
  options.forEach(([, text], k) => {
    if (flag.options[k].text !== text) flag.options[k].text = text;
  });
  element("undo").disabled = !now.undo;
  element("undo").title = now.undo ? `take back the decision about ${now.undo.id}` : "nothing to undo";
  const lines = [
    `${about.review}: ${number(now.reviewed)} of ${number(now.total)} captions are reviewed, ${number(now.edited)} of ` +
      `them edited; flagged and not reviewed: ${left}.`,
  ];
  if (now.empty) lines.push(`${number(now.empty)} are still empty; check --accept refuses them.`);
  element("result-text").textContent = lines.join(" ");
  notice(now.problem ?? "");
}

function showNothing() {
  const done = element("flag").value && element("status").value === "open" && !element("search").value;
  element("nothing").hidden = false;
  element("nothing-title").textContent = done ? "Nothing left here" : "No such captions";
  element("nothing-text").textContent = done
    ? "All of these captions are reviewed."
    : "No caption matches all filters on the left.";
}

function notice(text) {
  const place = element("notice");
  place.hidden = !text;
  if (place.textContent !== text) place.textContent = text;
}

let silence;
function say(text) {
  element("said").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => (element("said").textContent = ""), 5000);
}

function refused(error) {
  notice(
    error.status ? error.message : "Not saved: the server does not answer. Your text stays in the editor.",
  );
}

async function attempt(ask) {
  try {
    return await ask();
  } catch (error) {
    if (error.status === 410) await choose(caption.row?.row ?? 0); // the server has forgotten this list
    else refused(error);
    return null;
  }
}

// Buttons and keys

const BUTTONS = {
  accept: () => decide(),
  edit,
  undo,
  restore,
  take,
  previous: () => move(-1),
  next: () => move(1),
  "help-button": () => element("help").showModal(),
  "result-button": () => element("result").showModal(),
  "show-all": () => {
    for (const id of ["flag", "status", "search"]) element(id).value = "";
    choose();
  },
  copy: async () => {
    await navigator.clipboard.writeText(about.command);
    element("copy").textContent = "Copied";
  },
};
for (const [id, act] of Object.entries(BUTTONS)) {
  element(id).addEventListener("click", (event) => {
    if (event.detail) event.currentTarget.blur(); // Enter accepts again, instead of pressing this button
    act();
  });
}
element("choices").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) decide(button.dataset.choice);
});
element("figure").addEventListener("click", () => document.body.classList.toggle("large"));

function edit() {
  const { text } = caption;
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}

element("filters").addEventListener("submit", (event) => event.preventDefault());
element("flag").addEventListener("change", () => choose(caption.row?.row ?? 0));
element("status").addEventListener("change", () => choose(caption.row?.row ?? 0));
let typing;
element("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => choose(), 200);
});

const KEYS = {
  Enter: () => decide(),
  e: edit,
  u: undo,
  r: restore,
  t: take,
  n: nextOpen,
  j: () => move(1),
  ArrowDown: () => move(1),
  k: () => move(-1),
  ArrowUp: () => move(-1),
  " ": () => document.body.classList.toggle("large"),
  "/": () => element("search").select(),
  g: () => element("jump").select(),
  f: () => element("flag").focus(),
  d: () => element("status").focus(),
  "?": () => element("help").showModal(),
  Escape: () => {
    if (document.body.classList.contains("large")) document.body.classList.remove("large");
    else if (caption.row && caption.discard()) say("Unsaved text is discarded.");
  },
};
const MOVES = ["ArrowDown", "ArrowUp", "j", "k"]; // only these repeat while a key is held down

document.addEventListener("keydown", (event) => {
  if (!caption || event.isComposing || document.querySelector("dialog[open]")) return;
  const { target, key } = event;
  if (target === caption.text) inEditor(event);
  else if (target.matches("input, select")) inField(event);
  else if (target.matches("button") && (key === "Enter" || key === " ")) return;
  else if ((event.ctrlKey || event.metaKey) && key === "z") act(event, undo);
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.repeat && !MOVES.includes(key)) event.preventDefault();
  else if (/^[1-9]$/.test(key)) choice(Number(key) - 1);
  else if (KEYS[key] && (caption.row || "/?gfdu".includes(key))) act(event, KEYS[key]);
});

function act(event, action) {
  event.preventDefault();
  action();
}

function inEditor(event) {
  if (event.key === "Escape") act(event, () => caption.text.blur());
  if (event.key === "Enter" && !event.shiftKey) {
    act(event, () => {
      if (event.repeat) return;
      caption.text.blur();
      decide();
    });
  }
}

function inField(event) {
  if (event.key === "Escape") act(event, () => event.target.blur());
  if (event.key !== "Enter") return;
  if (event.target.id === "jump") act(event, jump);
  else if (event.target.id === "search") act(event, () => event.target.blur());
  else if (event.target.matches("select")) act(event, () => event.target.blur());
}

function choice(k) {
  const label = caption.row?.choices[k];
  if (label !== undefined) decide(label);
}

window.addEventListener("beforeunload", (event) => {
  if (caption?.drafts.size) event.preventDefault();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && caption) get("changes", { since: seen }).then(({ progress: now }) => showProgress(now)).catch(() => {});
});
