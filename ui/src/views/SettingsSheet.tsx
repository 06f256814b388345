import type { Signal } from "@preact/signals";
import { say } from "../notices";
import { DEFAULTS, type Settings, set, settings } from "../settings";
import { change, conversations, current, importConversations } from "../store";
import { download, fileName, toJson, toMarkdown } from "../transcript";
import { useDialog } from "./dialog";
import { IconButton } from "./Icon";

export function SettingsSheet({ open }: { open: Signal<boolean> }) {
  const dialog = useDialog(open.value);
  const close = (): void => void (open.value = false);
  return (
    <dialog
      ref={dialog}
      class="sheet"
      aria-labelledby="settings-title"
      onClose={close}
      onClick={(event) => event.target === event.currentTarget && close()}
    >
      <div class="sheet-body">
        <div class="sheet-head">
          <h2 id="settings-title">Settings</h2>
          <IconButton icon="close" label="Close the settings" onClick={close} />
        </div>
        <Sampling />
        <ThisChat />
        <Look />
        <Files close={close} />
      </div>
    </dialog>
  );
}

function ThisChat() {
  const { id, system } = current.value;
  return (
    <section>
      <h3>This chat</h3>
      <label>
        System prompt
        <textarea
          rows={3}
          value={system}
          placeholder="Instructions for the model, before the first message"
          onInput={(event) => change(id, (one) => ({ ...one, system: event.currentTarget.value }))}
        />
      </label>
    </section>
  );
}

function Sampling() {
  return (
    <section>
      <h3>Sampling</h3>
      <NumberField name="temperature" label="Temperature" min={0} max={2} step={0.1} hint="0: always the most likely token" empty="server default" />
      <NumberField name="topK" label="Top-k" min={0} max={1000} step={1} hint="0: all tokens" empty="server default" />
      <NumberField name="topP" label="Top-p" min={0.05} max={1} step={0.05} hint="1: all tokens" empty="server default" />
      <NumberField name="maxTokens" label="Maximum tokens" min={1} step={1} empty="as many as fit" />
      <NumberField name="seed" label="Seed" min={0} step={1} empty="random" />
      <button type="button" class="quiet" onClick={() => set({ ...DEFAULTS, models: settings.value.models, theme: settings.value.theme })}>
        Reset to defaults
      </button>
    </section>
  );
}

interface NumberFieldProps {
  name: "temperature" | "topK" | "topP" | "maxTokens" | "seed";
  label: string;
  min: number;
  max?: number;
  step: number;
  hint?: string;
  empty: string; // the placeholder of an empty field
}

function NumberField({ name, label, min, max, step, hint, empty }: NumberFieldProps) {
  const write = (field: HTMLInputElement): void => {
    const { badInput, rangeUnderflow, rangeOverflow, stepMismatch } = field.validity;
    if (badInput || rangeUnderflow || rangeOverflow || (stepMismatch && step === 1)) return;
    set({ [name]: field.value === "" ? null : field.valueAsNumber });
  };
  return (
    <label class="number">
      <span>
        {label}
        {hint && <small>{hint}</small>}
      </span>
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        placeholder={empty}
        value={settings.value[name] ?? ""}
        onInput={(event) => write(event.currentTarget)}
        onBlur={(event) => (event.currentTarget.value = String(settings.value[name] ?? ""))}
      />
    </label>
  );
}

const THEMES = { system: "System", light: "Light", dark: "Dark" } as const;

function Look() {
  return (
    <section>
      <h3>Appearance</h3>
      <fieldset class="choice">
        <legend class="unseen">Appearance</legend>
        {Object.entries(THEMES).map(([theme, label]) => (
          <label key={theme}>
            <input
              type="radio"
              name="theme"
              checked={settings.value.theme === theme}
              onChange={() => set({ theme: theme as Settings["theme"] })}
            />
            {label}
          </label>
        ))}
      </fieldset>
    </section>
  );
}

function Files({ close }: { close: () => void }) {
  const one = current.value;
  const take = async (field: HTMLInputElement): Promise<void> => {
    const file = field.files?.[0];
    field.value = "";
    if (!file) return;
    try {
      const count = importConversations(await file.text());
      say(count ? `${count} ${count === 1 ? "chat was" : "chats were"} imported.` : "That file contains no chats.");
      close();
    } catch {
      say(`${file.name} is not a JSON export of this page.`);
    }
  };
  return (
    <section>
      <h3>Export and import</h3>
      <div class="files">
        <button type="button" disabled={!one.turns.length} onClick={() => download(fileName(one, "md"), "text/markdown", toMarkdown(one))}>
          Chat as Markdown
        </button>
        <button type="button" disabled={!one.turns.length} onClick={() => download(fileName(one, "json"), "application/json", toJson([one]))}>
          Chat as JSON
        </button>
        <button
          type="button"
          disabled={!conversations.value.length}
          onClick={() => download("jaxchat.json", "application/json", toJson(conversations.value))}
        >
          All chats as JSON
        </button>
        <label class="button">
          Import
          <input class="unseen" type="file" accept=".json,application/json" onChange={(event) => take(event.currentTarget)} />
        </label>
      </div>
    </section>
  );
}
