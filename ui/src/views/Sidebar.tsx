import { type Signal, useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { type Conversation, settled, titleOf } from "../conversation";
import { say } from "../notices";
import { change, current, newestFirst, open as openConversation, put, removeConversation } from "../store";
import { Icon, IconButton } from "./Icon";

/** The list of chats; a drawer on a narrow window. */
export function Sidebar({ open, newChat }: { open: Signal<boolean>; newChat: () => void }) {
  const search = useSignal("");
  const list = useRef<HTMLElement>(null);
  useEffect(() => {
    if (open.value) list.current?.querySelector<HTMLElement>(".new")?.focus();
    else if (list.current?.contains(document.activeElement))
      document.querySelector<HTMLElement>(".drawer-button")?.focus();
  }, [open.value]);

  const wanted = search.value.trim().toLowerCase();
  const found = newestFirst.value.filter(
    (one) => !wanted || [titleOf(one), ...one.turns.map(({ text }) => text)].join("\n").toLowerCase().includes(wanted),
  );
  return (
    <>
      {open.value && <div class="scrim" onClick={() => (open.value = false)} />}
      <nav class={open.value ? "sidebar open" : "sidebar"} aria-label="Chats" ref={list}>
        <div class="brand">
          <span class="wordmark">jaxchat</span>
          <IconButton icon="close" label="Close the list" class="close-drawer" onClick={() => (open.value = false)} />
        </div>
        <button type="button" class="new" title="New chat (Ctrl+Shift+O)" onClick={newChat}>
          <Icon name="plus" />
          New chat
        </button>
        {newestFirst.value.length > 5 && (
          <input
            type="search"
            aria-label="Search chats"
            placeholder="Search"
            value={search.value}
            onInput={(event) => (search.value = event.currentTarget.value)}
          />
        )}
        <ul class="chats">
          {found.map((one) => (
            <Entry key={one.id} conversation={one} chosen={() => (open.value = false)} />
          ))}
        </ul>
        {!found.length && <p class="nothing">{wanted ? "No chat matches." : "Chats are stored in this browser only."}</p>}
      </nav>
    </>
  );
}

function Entry({ conversation, chosen }: { conversation: Conversation; chosen: () => void }) {
  const renaming = useSignal(false);
  const title = titleOf(conversation);
  const { id } = conversation;
  const rename = (name: string): void => {
    if (!renaming.value) return; // Enter did it, and leaving the field comes after
    renaming.value = false;
    change(id, (one) => ({ ...one, title: name.trim() }));
  };
  const remove = (): void => {
    removeConversation(id);
    say(`“${title}” was deleted.`, () => {
      put(settled(conversation));
      openConversation(id);
    });
  };
  if (renaming.value)
    return (
      <li>
        <input
          class="rename"
          aria-label="Name of the chat"
          defaultValue={title}
          ref={(field) => field?.focus()}
          onFocus={(event) => event.currentTarget.select()}
          onBlur={(event) => rename(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key === "Enter") rename(event.currentTarget.value);
            if (event.key === "Escape") renaming.value = false;
            event.stopPropagation();
          }}
        />
      </li>
    );
  return (
    <li class={current.value.id === id ? "chosen" : ""}>
      <button
        type="button"
        class="chat"
        aria-current={current.value.id === id ? "true" : undefined}
        onClick={() => {
          openConversation(id);
          chosen();
        }}
      >
        {title}
      </button>
      <IconButton icon="edit" label={`Rename ${title}`} onClick={() => (renaming.value = true)} />
      <IconButton icon="trash" label={`Delete ${title}`} onClick={remove} />
    </li>
  );
}
