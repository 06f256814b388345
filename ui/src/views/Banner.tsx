import { loadModels, modelsProblem, reachable } from "../connection";
import { storageFull } from "../store";

/** What is wrong with the page as a whole. */
export function Banner() {
  const said: string[] = [];
  if (!reachable.value)
    said.push("The server cannot be reached. What you wrote is kept; this page goes on when it is back.");
  else if (modelsProblem.value) said.push(`The models cannot be listed: ${modelsProblem.value}`);
  if (storageFull.value)
    said.push("This browser's storage is full, and new messages are not kept. Export chats, or delete old ones.");
  return (
    <div class="banner" role="alert">
      {said.map((text) => (
        <p key={text}>{text}</p>
      ))}
      {reachable.value && modelsProblem.value && (
        <button type="button" onClick={loadModels}>
          Try again
        </button>
      )}
    </div>
  );
}
