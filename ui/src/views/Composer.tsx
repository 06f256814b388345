import { useLayoutEffect, useRef } from "preact/hooks";
import { ask, stop } from "../answering";
import { chosenModels } from "../connection";
import { draft, room } from "../draft";
import { busy, current } from "../store";
import { Icon } from "./Icon";
import { grow } from "./grow";

export function Composer() {
  const area = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => grow(area.current as HTMLTextAreaElement), [draft.value]);
  const ready = chosenModels.value.length > 0 && draft.value.trim() !== "";
  const send = (): void => {
    if (!ready || busy.value) return;
    ask(current.value.id, draft.value.trim());
    draft.value = "";
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <div class="field">
        <textarea
          id="message"
          ref={area}
          rows={1}
          aria-label="Message"
          placeholder="Send a message"
          autoFocus
          value={draft.value}
          onInput={(event) => (draft.value = event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            send();
          }}
        />
        {busy.value ? (
          <button type="button" class="send" aria-label="Stop" title="Stop (Esc)" onClick={() => stop(current.value.id)}>
            <Icon name="stop" />
          </button>
        ) : (
          <button type="submit" class="send" aria-label="Send" title="Send (Enter)" disabled={!ready}>
            <Icon name="send" />
          </button>
        )}
      </div>
      <div class="under">
        <Meter />
        <span class="hint keys">{busy.value ? "Esc to stop" : "Shift + Enter for a new line"}</span>
      </div>
    </form>
  );
}

/** How full the context is. */
function Meter() {
  if (!room.value) return <span class="room" />;
  const { tokens, context } = room.value;
  const share = tokens / context;
  const label = `${tokens.toLocaleString("en")} of ${context.toLocaleString("en")} tokens`;
  return (
    <span class={share >= 1 ? "room over" : share > 0.8 ? "room near" : "room"}>
      <span
        class="gauge"
        role="meter"
        aria-label="Context"
        aria-valuemin={0}
        aria-valuemax={context}
        aria-valuenow={Math.min(tokens, context)}
        aria-valuetext={label}
      >
        <span style={{ width: `${100 * Math.min(share, 1)}%` }} />
      </span>
      {label}
      {share >= 1 ? ": too long" : ""}
    </span>
  );
}
