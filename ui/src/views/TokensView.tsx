import { useSignal } from "@preact/signals";
import type { Token } from "../conversation";

const CERTAIN = 0.95; // above it a token has no tint
const STEPS = 5; // of tint, the strongest where the model was least sure

const percent = (logprob: number): string => {
  const probability = 100 * Math.exp(logprob);
  return probability < 0.1 ? "<0.1%" : `${probability.toFixed(probability > 99.9 ? 0 : 1)}%`;
};

function tint({ text, logprob, sampled }: Token): string {
  const special = /^<(\|\w+\||0x\w+)>$/.test(text) ? " special" : "";
  if (!sampled) return `token forced${special}`;
  const probability = Math.exp(logprob);
  if (probability > CERTAIN) return `token${special}`;
  return `token${special} tint-${Math.min(STEPS, 1 + Math.floor((1 - probability) * STEPS))}`;
}

const visible = (text: string): string => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "(nothing)";

/** An answer token by token; one of them is looked at, by mouse, by touch or with the arrow keys. */
export function TokensView({ tokens }: { tokens: Token[] }) {
  const chosen = useSignal(0);
  const at = Math.min(chosen.value, tokens.length - 1);
  const move = (event: KeyboardEvent): void => {
    const steps: Record<string, number> = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: tokens.length - 1 };
    const next = steps[event.key];
    if (next === undefined || !tokens[next]) return;
    event.preventDefault();
    chosen.value = next;
    (event.currentTarget as HTMLElement).querySelectorAll<HTMLElement>(".token")[next]?.focus();
  };
  return (
    <div class="tokens">
      <div role="listbox" aria-label="Tokens of the answer" aria-orientation="horizontal" onKeyDown={move}>
        {tokens.map((token, index) => (
          <span
            key={index}
            role="option"
            class={tint(token)}
            aria-selected={index === at}
            aria-label={`${visible(token.text)}, ${token.sampled ? percent(token.logprob) : "given by the tool"}`}
            tabIndex={index === at ? 0 : -1}
            onPointerEnter={() => (chosen.value = index)}
            onClick={() => (chosen.value = index)}
            onFocus={() => (chosen.value = index)}
          >
            {token.text.replaceAll("\n", "⏎\n")}
          </span>
        ))}
      </div>
      <Inspector token={tokens[at] as Token} />
    </div>
  );
}

/** The alternatives at one position. */
function Inspector({ token }: { token: Token }) {
  const rows: [string, number][] = token.likeliest.some(([text]) => text === token.text)
    ? token.likeliest
    : [[token.text, token.logprob], ...token.likeliest];
  return (
    <div class="inspector">
      {token.sampled ? (
        <table aria-label="The most likely tokens at this position">
          <tbody>
            {rows.map(([text, logprob], row) => (
              <tr key={row} class={text === token.text ? "taken" : ""}>
                <th scope="row">{visible(text)}</th>
                <td class="bar" aria-hidden="true">
                  <span style={{ width: `${Math.max(0.5, 100 * Math.exp(logprob))}%` }} />
                </td>
                <td class="share">{percent(logprob)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      ) : (
        <p>
          <code>{visible(token.text)}</code> was given by the tool, not chosen by the model.
        </p>
      )}
    </div>
  );
}
