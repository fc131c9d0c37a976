// A server of the TypeScript SDK for both eras, on stdio: `typescript_modern.mjs SUITE`.
// Imports the SDK from the folder SUITE. Its tools answer the same whenever they are called.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.argv[2]}/node_modules/x.js`));
const load = async (name) => await import(pathToFileURL(require.resolve(name)));
const { McpServer, ResourceTemplate, completable, inputRequired, inputResponse } = await load(
  "@modelcontextprotocol/server",
);
const { serveStdio } = await load("@modelcontextprotocol/server/stdio");
const { z } = await load("zod");

const text = (said) => ({ content: [{ type: "text", text: said }] });

const make = () => {
  const server = new McpServer(
    { name: "typescript", version: "1", title: "A server in TypeScript" },
    { instructions: "Ask what you like.", capabilities: { logging: {} } },
  );
  server.registerTool(
    "sum",
    {
      title: "Sum",
      description: "Adds.",
      inputSchema: z.object({ a: z.number(), b: z.number() }),
      outputSchema: z.object({ sum: z.number() }),
      annotations: { readOnlyHint: true, openWorldHint: false },
      icons: [{ src: "data:image/png;base64,AA==", mimeType: "image/png", sizes: ["16x16"] }],
      _meta: { "example.org/colour": "blue" },
    },
    ({ a, b }) => ({ ...text(String(a + b)), structuredContent: { sum: a + b } }),
  );
  server.registerTool("fail", { description: "Fails." }, () => ({
    ...text("no"),
    isError: true,
    _meta: { "example.org/why": { deep: [1, null, "x"] } },
  }));
  server.registerTool("throw", { description: "Throws." }, () => {
    throw new Error("thrown away");
  });
  server.registerTool("count", { description: "Tells of its progress." }, async (ctx) => {
    const token = ctx.mcpReq._meta?.progressToken;
    for (let progress = 1; progress <= 3 && token !== undefined; progress++) {
      const params = { progressToken: token, progress, total: 3, message: `step ${progress}` };
      await ctx.mcpReq.notify({ method: "notifications/progress", params });
      await new Promise((done) => setTimeout(done, 50)); // or the client drops it for the answer
    }
    return text("counted");
  });
  server.registerTool("ask", { description: "Asks for a name." }, (ctx) => {
    const answer = inputResponse(ctx.mcpReq.inputResponses, "who");
    if (answer.kind !== "missing") return text(`answered: ${JSON.stringify(answer)}`);
    const requestedSchema = { type: "object", properties: { name: { type: "string" } } };
    return inputRequired({
      inputRequests: { who: inputRequired.elicit({ message: "Who?", requestedSchema }) },
    });
  });
  server.registerTool("link", { description: "Links." }, () => ({
    content: [
      { type: "resource_link", uri: "note://one", name: "one", annotations: { priority: 0.5 } },
      { type: "resource", resource: { uri: "note://in", mimeType: "text/plain", text: "in" } },
      { type: "image", data: "AA==", mimeType: "image/png", annotations: { audience: ["user"] } },
    ],
  }));
  server.registerResource("one", "note://one", { title: "One", mimeType: "text/plain" }, (uri) => ({
    contents: [{ uri: uri.href, mimeType: "text/plain", text: "first", _meta: { "x.org/n": 1 } }],
  }));
  server.registerResource(
    "note",
    new ResourceTemplate("note://by/{name}", { list: undefined }),
    { description: "By name." },
    (uri, { name }) => ({ contents: [{ uri: uri.href, blob: btoa(String(name)) }] }),
  );
  server.registerPrompt(
    "greet",
    {
      title: "Greet",
      argsSchema: z.object({ who: completable(z.string(), (v) => [`${v}a`, `${v}b`]) }),
    },
    ({ who }) => ({
      description: "A greeting.",
      messages: [{ role: "user", content: { type: "text", text: `Hello ${who}` } }],
    }),
  );
  return server;
};

serveStdio(make);
