// Whether the server is there, which models it has, and the key it may ask for.

import { computed, signal } from "@preact/signals";
import { ApiError, compiledShare, isHealthy, listModels, onUnauthorized } from "./client";
import { settings } from "./settings";
import type { Model } from "./wire";

const SLOWEST = 10; // seconds between two looks at a server that is gone
const COMPILING = 1; // seconds between two looks at one that compiles

export const reachable = signal(true);
export const models = signal<Model[] | null>(null); // null until they are known
export const modelsProblem = signal(""); // why they are not

export const compiled = signal<number | null>(null); // share of the programs; null when all are

/** The models that are asked: those chosen that are there, else the server's default. */
export const chosenModels = computed<Model[]>(() => {
  const known = models.value ?? [];
  const chosen = settings.value.models
    .map((id) => known.find((model) => model.id === id))
    .filter((model) => model !== undefined);
  if (chosen.length) return chosen.slice(0, 2);
  const fallback = known.find((model) => model.jaxchat?.default) ?? known[0];
  return fallback ? [fallback] : [];
});

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** A model in a few words. */
export const about = ({ jaxchat }: Model): string =>
  jaxchat ? `${compact.format(jaxchat.parameters)} parameters, context of ${jaxchat.context.toLocaleString("en")}` : "";

export async function loadModels(): Promise<void> {
  try {
    models.value = await listModels();
    modelsProblem.value = "";
    if (models.value.some(({ jaxchat }) => jaxchat?.ready === false)) void watch();
  } catch (error) {
    modelsProblem.value = (error as Error).message;
    if (!(error instanceof ApiError) || error.status >= 500) lost();
  }
}

let looking = false;
let lookNow = (): void => undefined;
const returned = new Set<() => void>();

/** Calls back each time that the server is reached again. */
export const onReturn = (callback: () => void): void => void returned.add(callback);

/** Says that the server is gone, and looks for it until it is back. */
export function lost(): void {
  reachable.value = false;
  if (!looking) void look();
}

async function look(): Promise<void> {
  looking = true;
  for (let seconds = 1; !(await isHealthy()); seconds = Math.min(2 * seconds, SLOWEST)) {
    await new Promise<void>((resolve) => {
      lookNow = resolve;
      setTimeout(resolve, 1000 * seconds);
    });
  }
  looking = false;
  reachable.value = true;
  await loadModels();
  if (reachable.value) returned.forEach((callback) => callback());
}

let watching = false;

/** Shows how far a server is that compiles, until it answers. */
export async function watch(): Promise<void> {
  if (watching) return;
  watching = true;
  while ((compiled.value = await compiledShare()) !== null)
    await new Promise((resolve) => setTimeout(resolve, 1000 * COMPILING));
  watching = false;
  await loadModels();
  if (reachable.value && !watching) returned.forEach((callback) => callback());
}

addEventListener("online", () => lookNow());
addEventListener("offline", () => lost());

/** What the dialog for the key shows; null while nobody needs it. */
export const keyWanted = signal<{ refused: boolean } | null>(null);
let answerKey: (key: string | null) => void = () => undefined;
let asking: Promise<string | null> | null = null;

onUnauthorized((refused) => {
  asking ??= new Promise((resolve) => {
    keyWanted.value = { refused };
    answerKey = resolve;
  });
  return asking;
});

export function giveKey(key: string | null): void {
  keyWanted.value = null;
  asking = null;
  answerKey(key);
}
