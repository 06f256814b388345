import { useSignal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { current } from "../store";
import { Empty } from "./Empty";
import { TurnView } from "./TurnView";

const NEAR = 48; // pixels from the end that still count as being there

/** What was said. It follows the end while the reader is there. */
export function Thread() {
  const box = useRef<HTMLDivElement>(null);
  const atEnd = useSignal(true);
  const conversation = current.value;
  const { id, turns, forgotten } = conversation;

  const toEnd = (): void => box.current?.scrollTo(0, box.current.scrollHeight);
  const before = useRef(0);
  const look = (): void => {
    const { scrollTop, scrollHeight, clientHeight } = box.current as HTMLDivElement;
    if (scrollHeight - scrollTop - clientHeight < NEAR) atEnd.value = true;
    else if (scrollTop < before.current) atEnd.value = false; // else it grew before this event
    before.current = scrollTop;
  };
  useLayoutEffect(toEnd, [id, turns.length]);
  useLayoutEffect(() => {
    if (atEnd.peek()) toEnd();
  });
  useEffect(() => {
    const observer = new ResizeObserver(() => atEnd.peek() && toEnd());
    observer.observe(box.current as HTMLDivElement);
    return () => observer.disconnect();
  }, []);

  return (
    <div class="thread" ref={box} onScroll={look} role="region" aria-label="Conversation" tabIndex={0}>
      {turns.length ? (
        <ol class="turns">
          {turns.map((turn, index) => (
            <li key={turn.id} class={index < forgotten ? "turn forgotten" : "turn"}>
              <TurnView conversation={id} turn={turn} last={index === turns.length - 1} />
              {index === forgotten - 1 && <p class="boundary">The model no longer sees the messages above.</p>}
            </li>
          ))}
        </ol>
      ) : (
        <Empty />
      )}
      {!atEnd.value && (
        <button type="button" class="to-end" onClick={toEnd}>
          Jump to the end
        </button>
      )}
    </div>
  );
}
