import { useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { askAgain, forgetOldest } from "../answering";
import { type Answer, type Stats, type Turn, isRunning, textOf } from "../conversation";
import { render } from "../markdown";
import { settings } from "../settings";
import { begin } from "../store";
import { copy } from "../transcript";
import type { Part } from "../wire";
import { Icon } from "./Icon";
import { TokensView } from "./TokensView";
import { ToolCard } from "./ToolCard";

const SLOW = 6; // seconds without a token, until "Still waiting" is shown

interface Place {
  conversation: string;
  turn: Turn;
  column: number;
  answer: Answer;
  last: boolean;
}

export function AnswerView(place: Place) {
  const { answer, turn, column } = place;
  const { model, parts, tokens } = answer;
  const asTokens = settings.value.showTokens && tokens?.length;
  return (
    <article class="answer" aria-label={model} aria-busy={isRunning(answer)}>
      <h2 class="who">{turn.answers.length > 1 ? model : model.split("/").at(-1)}</h2>
      <div class="said" data-column={column} onClick={copyCode}>
        {asTokens ? <TokensView tokens={tokens} /> : parts.map((part, at) => <PartView key={at} part={part} next={parts[at + 1]} />)}
        {answer.status === "waiting" && <Waiting />}
        <Remark {...place} />
        <Foot {...place} />
      </div>
    </article>
  );
}

function PartView({ part, next }: { part: Part; next?: Part }) {
  if (part.type === "text") return <Prose text={part.text} />;
  if (part.type === "python") return <ToolCard call={part.text} output={next?.type === "python_output" ? next.text : undefined} />;
  return null; // an output stands with its call
}

function Prose({ text }: { text: string }) {
  const html = useMemo(() => render(text), [text]);
  return <div class="prose" dangerouslySetInnerHTML={{ __html: html }} />; // sanitised by render
}

function copyCode({ target }: MouseEvent): void {
  if (!(target instanceof HTMLElement) || !target.matches(".copy-code")) return;
  const code = target.closest(".code")?.querySelector("code")?.textContent ?? "";
  void copy(code).then((done) => {
    target.textContent = done ? "Copied" : "Copy failed";
    setTimeout(() => (target.textContent = "Copy"), 1500);
  });
}

function Waiting() {
  const seconds = useSignal(0);
  useEffect(() => {
    const timer = setInterval(() => seconds.value++, 1000);
    return () => clearInterval(timer);
  }, []);
  return (
    <p class="waiting">
      <span class="dots" aria-hidden="true" />
      {seconds.value < SLOW ? "Waiting for the model" : `Still waiting (${seconds.value} s): the server may be busy, or the network slow`}
    </p>
  );
}

/** Why an answer is incomplete, and what can be done. */
function Remark({ conversation, turn, column, answer, last }: Place) {
  const again = (): void => askAgain(conversation, turn.id, column);
  const { failure, stats } = answer;
  const full = stats?.full || failure?.kind === "full";
  if (full)
    return (
      <div class="remark">
        <p>{stats?.full ? "The context is full: the answer was cut off here." : "The context is full: the conversation is longer than the model can read."}</p>
        {last && (
          <div class="actions">
            <button type="button" onClick={() => forgetOldest(conversation, turn.id, column)}>
              Forget the oldest turns
            </button>
            <button type="button" onClick={begin}>
              Start a new chat
            </button>
          </div>
        )}
      </div>
    );
  if (answer.finish === "length") return <p class="remark">Cut off at the maximum number of tokens.</p>;
  if (answer.status === "stopped") return <p class="remark">Stopped.</p>;
  if (!failure) return null;
  return (
    <div class="remark">
      <p>{failure.kind === "unreachable" ? "The server cannot be reached. The message will be sent again when it is back." : failure.message}</p>
      {last && (
        <div class="actions">
          <Retry at={failure.retryAt ?? 0} again={again} />
        </div>
      )}
    </div>
  );
}

/** Asks again, no earlier than the server allows. */
function Retry({ at, again }: { at: number; again: () => void }) {
  const left = (): number => Math.max(0, Math.ceil((at - Date.now()) / 1000));
  const seconds = useSignal(left());
  const wanted = useSignal(false);
  useEffect(() => {
    const timer = setInterval(() => {
      seconds.value = left();
      if (!seconds.value && wanted.value) again();
      if (!seconds.value) clearInterval(timer);
    }, 250);
    return () => clearInterval(timer);
  }, [at]);
  const ask = (): void => (seconds.value ? void (wanted.value = true) : again());
  return (
    <button type="button" onClick={ask} disabled={wanted.value}>
      {wanted.value ? `Trying again in ${seconds.value} s` : "Try again"}
    </button>
  );
}

function Foot({ conversation, turn, column, answer, last }: Place) {
  const running = isRunning(answer);
  const copied = useSignal(false);
  const copyAnswer = async (): Promise<void> => {
    copied.value = await copy(textOf(answer));
    setTimeout(() => (copied.value = false), 1500);
  };
  return (
    <footer>
      {answer.status === "streaming" && <span class="writing" />}
      <div class="actions">
        <button type="button" class="quiet" disabled={running || !textOf(answer)} onClick={copyAnswer}>
          <Icon name="copy" />
          {copied.value ? "Copied" : "Copy"}
        </button>
        {last && (
          <button type="button" class="quiet" disabled={running} onClick={() => askAgain(conversation, turn.id, column)}>
            <Icon name="redo" />
            Regenerate
          </button>
        )}
      </div>
      <p class="stats">
        {settings.value.showTokens && !answer.tokens?.length && !running && "Regenerate to see the tokens · "}
        {inWords(answer.stats)}
      </p>
    </footer>
  );
}

function inWords({ tokens, rate, firstToken }: Stats = {}): string {
  const said = [];
  if (tokens !== undefined) said.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (rate) said.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en")} tokens/s`);
  if (firstToken !== undefined) said.push(`first token after ${firstToken.toFixed(2)} s`);
  return said.join(" · ");
}
