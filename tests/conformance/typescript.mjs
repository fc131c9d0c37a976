// What the TypeScript client sees of one server, as JSON on stdout:
//   node typescript.mjs {"mode", "command", "args", "env", "url", "token", "prompts", "prefix",
//                        "calls": [[tool, arguments], ...], "completions": [[ref, argument], ...]}
// Over stdio with a command, over HTTP with a url. Imports the client from the folder $SUITE.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.SUITE}/node_modules/x.js`));
const load = async (name) => await import(pathToFileURL(require.resolve(name)));
const { Client, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

console.log = console.info = console.debug = console.error; // stdout is for what was seen
const wanted = JSON.parse(process.argv[2]);
const client = new Client(
  { name: "comparison", version: "1" },
  {
    versionNegotiation: { mode: wanted.mode },
    capabilities: { roots: {}, sampling: {}, elicitation: { form: {}, url: {} } },
  },
);
const asked = [];
const answers = {
  "sampling/createMessage": {
    model: "none",
    role: "assistant",
    content: { type: "text", text: "sampled" },
  },
  "elicitation/create": { action: "accept", content: { name: "somebody" } },
  "roots/list": { roots: [{ uri: "file:///somewhere", name: "somewhere" }] },
};
for (const [method, answer] of Object.entries(answers)) {
  client.setRequestHandler(method, (request) => {
    asked.push([method, request.params ?? null]);
    return answer;
  });
}
const transport = wanted.url
  ? new StreamableHTTPClientTransport(new URL(wanted.url), {
      requestInit: { headers: { authorization: `Bearer ${wanted.token}` } },
    })
  : new StdioClientTransport({
      command: wanted.command,
      args: wanted.args,
      env: wanted.env,
      stderr: "inherit",
    });

// An error is a result too: the same one has to come either way.
const attempt = async (ask) => {
  try {
    return await ask();
  } catch (error) {
    return { error: { code: error.code ?? null, message: String(error.message) } };
  }
};

await client.connect(transport);
const seen = {
  version: client.getNegotiatedProtocolVersion?.() ?? null,
  instructions: client.getInstructions() ?? null,
  tools: await attempt(() => client.listTools()),
  prompts: await attempt(() => client.listPrompts()),
  resources: await attempt(() => client.listResources()),
  templates: await attempt(() => client.listResourceTemplates()),
  calls: [],
  completions: [],
  progress: [],
  asked,
};
for (const [name, parameters] of wanted.calls) {
  const progress = [];
  const onprogress = (step) => progress.push(step);
  const call = { name, arguments: parameters };
  seen.calls.push(await attempt(() => client.callTool(call, { onprogress })));
  seen.progress.push(progress);
}
for (const resource of (seen.resources.resources ?? []).slice(0, 3)) {
  seen.calls.push(await attempt(() => client.readResource({ uri: resource.uri })));
}
for (const uri of wanted.reads ?? []) {
  seen.calls.push(await attempt(() => client.readResource({ uri })));
}
for (const [name, parameters] of wanted.prompts ?? []) {
  seen.calls.push(await attempt(() => client.getPrompt({ name, arguments: parameters })));
}
for (const [ref, argument] of wanted.completions ?? []) {
  seen.completions.push(await attempt(() => client.complete({ ref, argument })));
}
process.stdout.write(JSON.stringify(seen));
await client.close();
