/** A call of the model's tool, and what came back, as soon as it does. */
export const ToolCard = ({ call, output }: { call: string; output?: string }) => (
  <div class="tool" role="group" aria-label="Tool call">
    <span class="tool-name">calculator</span>
    <code class="call" tabIndex={call.length > 60 ? 0 : undefined}>
      {call || "…"}
    </code>
    <span class="equals" aria-label="gives">
      =
    </span>
    <code class={output ? "output" : "output pending"}>{output || "…"}</code>
  </div>
);
