// Draws openapi.json: every operation with its parameters, body and answers, and a form that tries it out.
// Builds elements only, never markup from text, so nothing that the API answers can become script.

const base = new URL("./", location.href);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

function named(schema, schemas) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return schemas[name]?.enum ? named(schemas[name], schemas) : name;
  }
  if (schema.allOf) return schema.allOf.map((part) => named(part, schemas)).join(" & ");
  if (schema.anyOf) return schema.anyOf.map((part) => named(part, schemas)).join(" | ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.type === "array") return `list of ${named(schema.items, schemas) || "anything"}`;
  return schema.type || "anything";
}

function table(headings, rows) {
  if (rows.length === 0) return null;
  return element("table", {},
    element("thead", {}, element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)))),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat()))))));
}

function code(text) {
  return element("code", {}, text);
}

// What stands between backticks becomes code.
function prose(text) {
  return (text || "").split(/`([^`]+)`/).map((part, index) => (index % 2 ? code(part) : part));
}

function fields(name, schema, schemas) {
  const required = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([field, inner]) => [
    code(field),
    named(inner, schemas),
    prose([required.has(field) ? "required" : "", inner.readOnly ? "read-only" : "", inner.description || ""]
      .filter(Boolean).join("; ")),
  ]);
  return element("details", {}, element("summary", {}, `Fields of ${name}`),
    element("div", { class: "inside" }, element("p", {}, ...prose(schema.description)),
      table(["field", "type", ""], rows)));
}

function referenced(schema, schemas, seen = new Set()) {
  for (const [, name] of JSON.stringify(schema ?? {}).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
    if (!seen.has(name)) {
      seen.add(name);
      referenced(schemas[name], schemas, seen);
    }
  }
  return seen;
}

async function show(response, output) {
  const head = [`${response.status} ${response.statusText}`];
  response.headers.forEach((value, name) => head.push(`${name}: ${value}`));
  output.textContent = `${head.join("\n")}\n\n`;
  if ((response.headers.get("content-type") || "").startsWith("text/event-stream")) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      output.textContent = (output.textContent + value).slice(-20000);
    }
  }
  const text = await response.text();
  try {
    output.textContent += JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    output.textContent += text;
  }
}

function tryIt(path, method, operation) {
  const inputs = (operation.parameters || []).map((parameter) => ({
    parameter,
    input: element("input", { required: parameter.required, placeholder: parameter.schema.examples?.[0] }),
  }));
  const [mediaType, content] = Object.entries(operation.requestBody?.content || {})[0] || [];
  const body = content && element("textarea", { spellcheck: "false", "aria-label": "Body" });
  if (body) body.value = JSON.stringify(content.example, null, 2);
  const output = element("pre", { hidden: true, "aria-live": "polite" });
  let running = null;

  async function send(event) {
    event.preventDefault();
    running?.abort();
    running = new AbortController();
    let filled = path;
    const query = new URLSearchParams();
    const headers = new Headers();
    for (const { parameter, input } of inputs) {
      if (input.value === "") continue;
      if (parameter.in === "path") filled = filled.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (parameter.in === "query") query.set(parameter.name, input.value);
      else headers.set(parameter.name, input.value);
    }
    if (body) headers.set("Content-Type", mediaType);
    const url = new URL(filled.slice(1) + (query.size ? `?${query}` : ""), base);
    output.hidden = false;
    output.textContent = `${method} ${url} …`;
    try {
      const options = { method, headers, body: body?.value, signal: running.signal, cache: "no-store" };
      await show(await fetch(url, options), output);
    } catch (error) {
      if (error.name !== "AbortError") output.textContent += `\n${error}`;
    }
  }

  return element("form", { onsubmit: send },
    ...inputs.map(({ parameter, input }) =>
      element("label", {}, `${parameter.name} (${parameter.in})`, input)),
    body, element("button", { type: "submit" }, "Send"), output);
}

function drawn(path, method, operation, schemas) {
  const parameters = (operation.parameters || []).map((parameter) => [
    code(parameter.name), parameter.in, named(parameter.schema, schemas), prose(parameter.description),
  ]);
  const answers = Object.entries(operation.responses).map(([status, answer]) => [
    code(status), prose(answer.description),
    Object.entries(answer.content || {}).map(([type, of]) => `${type}: ${named(of.schema, schemas)}`).join(", "),
  ]);
  const models = [...referenced([operation.requestBody, operation.responses], schemas)].filter(
    (name) => !schemas[name].enum);
  const words = [method, path, operation.summary, operation.operationId, operation.description,
    ...(operation.parameters || []).flatMap(({ name, description }) => [name, description])];
  const inside = element("div", { class: "inside" });
  const details = element("details", { id: operation.operationId, "data-words": words.join(" ").toLowerCase() },
    element("summary", {}, element("span", { class: "method" }, method), element("span", { class: "path" }, path),
      element("span", { class: "what" }, operation.summary)),
    inside);
  details.addEventListener("toggle", () => {
    if (!details.open || inside.hasChildNodes()) return;
    inside.append(...[
      element("p", {}, ...prose(operation.description || operation.summary)),
      table(["parameter", "in", "type", ""], parameters),
      table(["answer", "", "content"], answers),
      ...models.map((name) => fields(name, schemas[name], schemas)),
      tryIt(path, method, operation),
    ].filter(Boolean));
  });
  return details;
}

function filter(words) {
  for (const details of document.querySelectorAll("details[data-words]")) {
    details.hidden = !words.every((word) => details.dataset.words.includes(word));
  }
  for (const section of document.querySelectorAll("#operations > section")) {
    section.hidden = !section.querySelector("details:not([hidden])");
  }
}

async function start() {
  const main = document.getElementById("operations");
  let api;
  try {
    const response = await fetch(new URL("openapi.json", base));
    if (!response.ok) throw new Error(`openapi.json answered ${response.status}`);
    api = await response.json();
  } catch (error) {
    main.replaceChildren(element("p", { role: "alert" }, `The description could not be loaded: ${error.message}`));
    return;
  }
  document.getElementById("title").textContent = `${api.info.title} ${api.info.version}`;
  document.getElementById("about").replaceChildren(...prose(api.info.description));
  const sections = new Map(api.tags.map(({ name }) => [name, element("section", {}, element("h2", {}, name))]));
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      sections.get(operation.tags[0]).append(drawn(path, method.toUpperCase(), operation, api.components.schemas));
    }
  }
  main.replaceChildren(...sections.values());
  document.getElementById("problems").append(element("h2", {}, "problem types"),
    ...api["x-problem-types"].map((kind) => element("p", { id: kind.type.split("#")[1] },
      element("strong", {}, `${kind.status} ${kind.title}`), ` (${kind.type}) – `, ...prose(kind.description))));
  document.getElementById("find").addEventListener("input", (event) =>
    filter(event.target.value.toLowerCase().split(/\s+/).filter(Boolean)));
  const wanted = location.hash.slice(1);
  const target = wanted && document.getElementById(wanted);
  if (target) {
    target.open = true;
    target.scrollIntoView();
  }
}

start();
