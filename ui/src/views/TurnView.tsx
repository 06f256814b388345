import { useSignal } from "@preact/signals";
import { memo } from "preact/compat";
import { edit } from "../answering";
import type { Turn } from "../conversation";
import { copy } from "../transcript";
import { AnswerView } from "./AnswerView";
import { Icon } from "./Icon";
import { grow } from "./grow";

/** A question and its answers, set like an interview: who speaks stands in the margin. */
export const TurnView = memo(({ conversation, turn, last }: { conversation: string; turn: Turn; last: boolean }) => {
  const columns = turn.answers.length;
  return (
    <>
      <Question conversation={conversation} turn={turn} />
      <div class={columns > 1 ? "answers beside" : "answers"}>
        {turn.answers.map((answer, column) => (
          <AnswerView key={column} conversation={conversation} turn={turn} column={column} answer={answer} last={last} />
        ))}
      </div>
    </>
  );
});

function Question({ conversation, turn }: { conversation: string; turn: Turn }) {
  const editing = useSignal<string | null>(null);
  const send = (): void => {
    const text = editing.value?.trim();
    if (!text) return;
    editing.value = null;
    edit(conversation, turn.id, text);
    document.getElementById("message")?.focus();
  };
  return (
    <article class="question" aria-label="You">
      <h2 class="who">You</h2>
      {editing.value === null ? (
        <div class="said">
          <p class="asked">{turn.text}</p>
          <div class="actions">
            <button type="button" class="quiet" onClick={() => (editing.value = turn.text)}>
              <Icon name="edit" />
              Edit
            </button>
            <button type="button" class="quiet" onClick={() => copy(turn.text)}>
              <Icon name="copy" />
              Copy
            </button>
          </div>
        </div>
      ) : (
        <form
          class="said editing"
          onSubmit={(event) => {
            event.preventDefault();
            send();
          }}
        >
          <textarea
            rows={1}
            aria-label="Edit your message"
            value={editing.value}
            ref={(area) => {
              if (!area || area.dataset.ready) return;
              area.dataset.ready = "yes";
              grow(area);
              area.focus();
            }}
            onInput={(event) => {
              editing.value = event.currentTarget.value;
              grow(event.currentTarget);
            }}
            onKeyDown={(event) => {
              if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
                event.preventDefault();
                send();
              }
              if (event.key === "Escape") {
                event.stopPropagation();
                editing.value = null;
              }
            }}
          />
          <div class="actions">
            <button type="submit" class="primary">
              Send
            </button>
            <button type="button" class="quiet" onClick={() => (editing.value = null)}>
              Cancel
            </button>
            <span class="hint">Everything after this message will be replaced.</span>
          </div>
        </form>
      )}
    </article>
  );
}
