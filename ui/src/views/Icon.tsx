import type { ButtonHTMLAttributes } from "preact";

// Line icons on a grid of 20.

const PATHS = {
  close: "M5 5l10 10M15 5L5 15",
  compare: "M3 4.5h5.5v11H3zM11.5 4.5H17v11h-5.5z",
  copy: "M7 7h9v9H7zM4 13V4h9",
  edit: "M4 16l.8-3.2L13 4.5l2.5 2.5-8.3 8.2L4 16z",
  menu: "M3.5 6h13M3.5 10h13M3.5 14h13",
  plus: "M10 4v12M4 10h12",
  redo: "M15.5 8.5A6 6 0 1 0 16 11M16 4.5v4h-4",
  send: "M10 16V4.5M5 9l5-5 5 5",
  settings: "M3.5 6h7M14.5 6h2M3.5 14h2M9.5 14h7M12.5 4v4M7.5 12v4",
  stop: "M6 6h8v8H6z",
  tokens: "M3 6.5h5v3H3zM10.5 6.5H17v3h-6.5zM3 12h7.5v3H3zM13 12h4v3h-4z",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
} as const;

type Name = keyof typeof PATHS;

export const Icon = ({ name }: { name: Name }) => (
  <svg class="icon" viewBox="0 0 20 20" aria-hidden="true">
    <path d={PATHS[name]} fill={name === "stop" ? "currentColor" : undefined} />
  </svg>
);

/** A button that is only an icon. */
export const IconButton = ({ icon, label, ...rest }: { icon: Name; label: string } & ButtonHTMLAttributes) => (
  <button type="button" title={label} aria-label={label} {...rest} class={`round ${rest.class ?? ""}`}>
    <Icon name={icon} />
  </button>
);
