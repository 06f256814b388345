import type { Signal } from "@preact/signals";
import { about, chosenModels, models } from "../connection";
import { set, settings } from "../settings";
import type { Model } from "../wire";
import { IconButton } from "./Icon";

export function Header({ drawer, sheet }: { drawer: Signal<boolean>; sheet: Signal<boolean> }) {
  const asked = chosenModels.value;
  const known = models.value ?? [];
  const compare = (): void => {
    const first = asked[0];
    const other = known.find((model) => model.id !== first?.id) ?? first;
    if (first && other) set({ models: asked.length > 1 ? [first.id] : [first.id, other.id] });
  };
  const choose = (column: number, id: string): void => {
    set({ models: asked.map((model, at) => (at === column ? id : model.id)) });
  };
  return (
    <header>
      <IconButton icon="menu" label="Chats" class="drawer-button" onClick={() => (drawer.value = true)} />
      <div class="pickers">
        {asked.map((model, column) => (
          <Picker key={column} label={column ? "Second model" : "Model"} chosen={model} choose={(id) => choose(column, id)} />
        ))}
      </div>
      <div class="tools">
        <IconButton
          icon="compare"
          label="Two models side by side"
          aria-pressed={asked.length > 1}
          disabled={!known.length}
          onClick={compare}
        />
        <IconButton
          icon="tokens"
          label="Show tokens and their probabilities"
          aria-pressed={settings.value.showTokens}
          onClick={() => set({ showTokens: !settings.value.showTokens })}
        />
        <IconButton icon="settings" label="Settings" aria-haspopup="dialog" onClick={() => (sheet.value = true)} />
      </div>
    </header>
  );
}

function Picker({ label, chosen, choose }: { label: string; chosen: Model; choose: (id: string) => void }) {
  const byRun = Map.groupBy(models.value ?? [], (model) => model.jaxchat?.run ?? "");
  return (
    <label class="picker">
      <span class="unseen">{label}</span>
      <select value={chosen.id} onChange={(event) => choose(event.currentTarget.value)}>
        {[...byRun].map(([run, stages]) => (
          <optgroup key={run} label={run ? `run ${run}` : "models"}>
            {stages.map((model) => (
              <option key={model.id} value={model.id}>
                {model.id}
              </option>
            ))}
          </optgroup>
        ))}
      </select>
      <span class="about">{about(chosen)}</span>
    </label>
  );
}
