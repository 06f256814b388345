import { ask } from "../answering";
import { about, chosenModels, models, reachable } from "../connection";
import { current } from "../store";

// What the smallest model of this project is trained to answer.
const EXAMPLES = [
  ["Identity", "Who are you?"],
  ["Arithmetic", "What is 37 * 24?"],
  ["Spelling", "How do you spell garden?"],
  ["Counting", "How often does r occur in strawberry?"],
] as const;

/** The page before the first question. */
export function Empty() {
  const asked = chosenModels.value;
  return (
    <section class="empty">
      <h1>{asked.map((model) => model.id).join(" and ") || (models.value ? "No model" : "jaxchat")}</h1>
      <p>
        {asked.length === 1 && asked[0] ? `${about(asked[0])}.` : ""}
        {asked.length > 1 && "Both models answer every message."}
        {!asked.length && (reachable.value ? "Asking the server for its models…" : "Waiting for the server.")}
      </p>
      <ul>
        {EXAMPLES.map(([kind, text]) => (
          <li key={text}>
            <button type="button" disabled={!asked.length} onClick={() => ask(current.value.id, text)}>
              <span>{kind}</span>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
