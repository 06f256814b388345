// Conversations as files.

import { type Answer, type Conversation, titleOf } from "./conversation";

const partText = { text: "", python: "tool", python_output: "output" } as const;

function answerInMarkdown(answer: Answer): string {
  const pieces = answer.parts.map(({ type, text }) =>
    type === "text" ? text : `\n\n\`\`\`${partText[type]}\n${text}\n\`\`\`\n\n`,
  );
  return `**${answer.model}**\n\n${pieces.join("").trim() || `_${answer.failure?.message ?? "no answer"}_`}\n`;
}

export function toMarkdown(conversation: Conversation): string {
  const system = conversation.system.trim();
  return [
    `# ${titleOf(conversation)}\n`,
    ...(system ? [`**System**\n\n${system}\n`] : []),
    ...conversation.turns.flatMap(({ text, answers }) => [`**You**\n\n${text}\n`, ...answers.map(answerInMarkdown)]),
  ].join("\n");
}

export const toJson = (conversations: Conversation[]): string => `${JSON.stringify(conversations, null, 2)}\n`;

/** Gives the reader a file. */
export function download(name: string, type: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const fileName = (conversation: Conversation, ending: string): string =>
  `${titleOf(conversation).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat"}.${ending}`;

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOldWay(text); // over plain http from another machine there is no clipboard
  }
}

function copyOldWay(text: string): boolean {
  const area = Object.assign(document.createElement("textarea"), { value: text });
  const focused = document.activeElement as HTMLElement | null;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
