import { compiled, loadModels, modelsProblem, reachable } from "../connection";
import { storageFull } from "../store";

/** Problems of the page as a whole. */
export function Banner() {
  const said: string[] = [];
  if (!reachable.value)
    said.push("The server cannot be reached. Your messages are saved; the page resumes when it is back.");
  else if (modelsProblem.value) said.push(`The models cannot be listed: ${modelsProblem.value}`);
  if (storageFull.value)
    said.push("This browser's storage is full, so new messages are not saved. Export chats, or delete old ones.");
  return (
    <div class="banner" role="alert">
      {said.map((text) => (
        <p key={text}>{text}</p>
      ))}
      {reachable.value && compiled.value !== null && (
        <p>
          The server compiles its programs, which takes minutes the first time. It answers then. <progress value={compiled.value} />
        </p>
      )}
      {reachable.value && modelsProblem.value && (
        <button type="button" onClick={loadModels}>
          Try again
        </button>
      )}
    </div>
  );
}
