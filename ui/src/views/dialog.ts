import type { RefObject } from "preact";
import { useEffect, useRef } from "preact/hooks";

/** A dialog that is open, before everything else, while it is wanted. */
export function useDialog(wanted: boolean): RefObject<HTMLDialogElement | null> {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    if (wanted) dialog.current?.showModal();
    else dialog.current?.close();
  }, [wanted]);
  return dialog;
}
