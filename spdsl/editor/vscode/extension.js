// Starts `spdsl lsp` for .spat files.  Colours need nothing of this.
"use strict";

const vscode = require("vscode");

let client;

async function start() {
  let library;
  try {
    library = require("vscode-languageclient/node");
  } catch {
    vscode.window.showWarningMessage(
      `spdsl: run \`npm install --omit=dev\` in ${__dirname}, then reload; until then there are colours alone.`
    );
    return;
  }
  const [command, ...args] = vscode.workspace.getConfiguration("spdsl").get("command");
  client = new library.LanguageClient(
    "spdsl",
    "spdsl",
    { command, args },
    {
      documentSelector: [{ language: "spat" }],
      synchronize: { fileEvents: vscode.workspace.createFileSystemWatcher("**/*.spat") },
    }
  );
  try {
    await client.start();
  } catch (reason) {
    client = undefined;
    vscode.window.showErrorMessage(
      `spdsl: \`${[command, ...args].join(" ")}\` does not start (${reason.message || reason}). ` +
        'Install it with `pip install "spdsl[editor]"`, or name another command in the setting `spdsl.command`.'
    );
  }
}

async function stop() {
  const running = client;
  client = undefined;
  if (running) {
    await running.stop();
  }
}

async function activate(context) {
  context.subscriptions.push(
    vscode.commands.registerCommand("spdsl.restart", async () => {
      await stop();
      await start();
    })
  );
  await start();
}

module.exports = { activate, deactivate: stop };
