import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { stop } from "../answering";
import { announcement } from "../notices";
import { begin, busy, current } from "../store";
import { titleOf } from "../conversation";
import { Banner } from "./Banner";
import { Composer } from "./Composer";
import { Header } from "./Header";
import { KeyDialog } from "./KeyDialog";
import { SettingsSheet } from "./SettingsSheet";
import { Sidebar } from "./Sidebar";
import { Thread } from "./Thread";
import { Offer } from "./Offer";

export function App() {
  const drawer = useSignal(false); // the list of chats, on a narrow window
  const sheet = useSignal(false);

  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const inDialog = document.querySelector("dialog[open]");
      if (event.key === "Escape" && !inDialog && !event.isComposing) {
        if (busy.value) stop(current.value.id);
        drawer.value = false;
      } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
        event.preventDefault();
        newChat();
      }
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);

  const newChat = (): void => {
    begin();
    drawer.value = false;
    document.getElementById("message")?.focus();
  };
  const title = titleOf(current.value);
  useEffect(() => {
    document.title = current.value.turns.length ? `${title} · jaxchat` : "jaxchat";
  }, [title]);

  return (
    <>
      <a class="skip" href="#message" onClick={focusMessage}>
        Skip to the message field
      </a>
      <Sidebar open={drawer} newChat={newChat} />
      <main inert={drawer.value && matchMedia("(max-width: 800px)").matches}>
        <Header drawer={drawer} sheet={sheet} />
        <Banner />
        <Thread />
        <Composer />
      </main>
      <SettingsSheet open={sheet} />
      <KeyDialog />
      <Offer />
      <div class="unseen" role="status">
        {announcement.value}
      </div>
    </>
  );
}

function focusMessage(event: Event): void {
  event.preventDefault(); // the address keeps the conversation's id
  document.getElementById("message")?.focus();
}
