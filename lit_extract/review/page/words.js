// Differences between two texts, word by word.

const MOST_WORDS = 400; // the table below grows with their square

// A list of [kind, text], kind being "same", "gone" or "new".
export function compare(before, after) {
  const a = split(before);
  const b = split(after);
  if (a.length > MOST_WORDS || b.length > MOST_WORDS) return [["gone", before], ["new", after]];
  // common[i][j]: length of the longest common part of a from i and b from j
  const common = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i][j] = a[i] === b[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const parts = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add(parts, "same", a[i++]);
      j++;
    } else if (j === b.length || (i < a.length && common[i + 1][j] >= common[i][j + 1])) {
      add(parts, "gone", a[i++]);
    } else {
      add(parts, "new", b[j++]);
    }
  }
  return parts;
}

function split(text) {
  return text.match(/\s+|[\p{L}\p{N}\p{M}'’]+|[^]/gu) ?? [];
}

function add(parts, kind, word) {
  const last = parts.at(-1);
  if (last?.[0] === kind) last[1] += word;
  else parts.push([kind, word]);
}
