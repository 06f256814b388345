// Markdown of a model, which is hostile input, to HTML that is safe to show.

import DOMPurify from "dompurify";
import MarkdownIt, { type Token } from "markdown-it";
import { highlighted } from "./highlight";

const LINK = /^(?:https?:|mailto:)/i;
const parser = new MarkdownIt({ html: false, linkify: true, breaks: true });
const { escapeHtml } = parser.utils;

parser.validateLink = (url) => LINK.test(url);
parser.linkify.set({ fuzzyLink: false });

// An image would be loaded from elsewhere, and tell who reads this: it becomes a link.
parser.renderer.rules.image = (tokens, index) => {
  const token = tokens[index] as Token;
  const source = String(token.attrGet("src") ?? "");
  return `<a href="${escapeHtml(source)}">${escapeHtml(token.content || source)}</a>`;
};

const codeBlock = (token: Token): string => {
  const language = token.info.trim().split(/\s+/)[0] ?? "";
  const label = language ? `Code in ${language}` : "Code";
  return (
    `<div class="code"><div class="code-head"><span>${escapeHtml(language || "text")}</span>` +
    `<button type="button" class="quiet copy-code">Copy</button></div>` +
    `<pre tabindex="0" role="region" aria-label="${escapeHtml(label)}"><code>` +
    `${highlighted(token.content, language) ?? escapeHtml(token.content)}</code></pre></div>`
  );
};
parser.renderer.rules.fence = (tokens, index) => codeBlock(tokens[index] as Token);
parser.renderer.rules.code_block = (tokens, index) => codeBlock(tokens[index] as Token);
parser.renderer.rules.table_open = () => '<div class="table" tabindex="0" role="region" aria-label="Table"><table>';
parser.renderer.rules.table_close = () => "</table></div>";

// The page allows no inline styles: a column's alignment becomes a class.
parser.core.ruler.push("alignment", (state) => {
  for (const token of state.tokens) {
    const align = /text-align:(\w+)/.exec(String(token.attrGet("style") ?? ""))?.[1];
    if (align) token.attrs = [["class", `align-${align}`]];
  }
});

const TAGS =
  "a blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr li ol p pre s span strong table tbody td th thead tr ul";
const ATTRIBUTES = "aria-label class href role start tabindex type";

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** Safe HTML for a text in Markdown. */
export const render = (text: string): string =>
  DOMPurify.sanitize(parser.render(text), {
    ALLOWED_TAGS: TAGS.split(" "),
    ALLOWED_ATTR: ATTRIBUTES.split(" "),
    ALLOWED_URI_REGEXP: LINK,
    ALLOW_DATA_ATTR: false,
  });
