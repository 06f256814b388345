import { useRef } from "preact/hooks";
import { giveKey, keyWanted } from "../connection";
import { useDialog } from "./dialog";

export function KeyDialog() {
  const field = useRef<HTMLInputElement>(null);
  const wanted = keyWanted.value;
  const dialog = useDialog(wanted !== null);
  return (
    <dialog ref={dialog} class="ask-key" aria-labelledby="key-title" onCancel={() => giveKey(null)}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          if (field.current?.value) giveKey(field.current.value);
        }}
      >
        <h2 id="key-title">This server requires a key</h2>
        <p>{wanted?.refused ? "That key was refused. " : ""}The person who started the server has it. It is stored until this tab is closed.</p>
        <label>
          Key
          <input ref={field} type="password" autocomplete="off" aria-invalid={wanted?.refused} />
        </label>
        <div class="actions">
          <button type="submit" class="primary">
            Continue
          </button>
          <button type="button" class="quiet" onClick={() => giveKey(null)}>
            Cancel
          </button>
        </div>
      </form>
    </dialog>
  );
}
