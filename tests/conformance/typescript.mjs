// What the TypeScript client sees of one server, as JSON on stdout:
//   node typescript.mjs {"mode", "command", "args", "env", "calls": [[tool, arguments], ...]}
// Imports the client from the folder that $SUITE names.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(`${process.env.SUITE}/node_modules/x.js`));
const load = async (name) => await import(pathToFileURL(require.resolve(name)));
const { Client } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

const wanted = JSON.parse(process.argv[2]);
const client = new Client(
  { name: "comparison", version: "1" },
  { versionNegotiation: { mode: wanted.mode } },
);
const transport = new StdioClientTransport({
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
  tools: await attempt(() => client.listTools()),
  prompts: await attempt(() => client.listPrompts()),
  resources: await attempt(() => client.listResources()),
  templates: await attempt(() => client.listResourceTemplates()),
  calls: [],
};
for (const [name, parameters] of wanted.calls) {
  seen.calls.push(await attempt(() => client.callTool({ name, arguments: parameters })));
}
for (const resource of (seen.resources.resources ?? []).slice(0, 3)) {
  seen.calls.push(await attempt(() => client.readResource({ uri: resource.uri })));
}
for (const prompt of (seen.prompts.prompts ?? []).filter((one) => !one.arguments?.length)) {
  seen.calls.push(await attempt(() => client.getPrompt({ name: prompt.name })));
}
process.stdout.write(JSON.stringify(seen));
await client.close();
