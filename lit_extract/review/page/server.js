// Requests to the server, and its refusals.

export class Refusal extends Error {
  constructor(status, content) {
    super(content.message ?? "");
    this.status = status;
    this.content = content;
  }
}

export async function get(path, query = {}) {
  return answer(await fetch(`/api/${path}?${new URLSearchParams(query)}`));
}

export async function post(path, content) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(`/api/${path}`, { method: "POST", headers, body: JSON.stringify(content) }));
}

async function answer(response) {
  const text = await response.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = { message: text };
  }
  if (!response.ok) throw new Refusal(response.status, content);
  return content;
}
