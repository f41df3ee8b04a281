// Values that components watch: a store is a value, a way to set it, and whoever wants to know.
import { useEffect, useState } from "preact/hooks";

export interface Store<T> {
  get(): T;
  set(value: T): void;
  watch(changed: () => void): () => void;
}

export function makeStore<T>(first: T): Store<T> {
  let value = first;
  const watchers = new Set<() => void>();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const changed of [...watchers]) changed();
    },
    watch(changed) {
      watchers.add(changed);
      return () => watchers.delete(changed);
    },
  };
}

export function useStore<T>(store: Store<T>): T {
  return useSyncExternalStore(store.watch, store.get);
}

export function useSyncExternalStore<T>(watch: (changed: () => void) => () => void, read: () => T): T {
  const [value, setValue] = useState<{ of: T }>({ of: read() });
  useEffect(() => {
    const look = () => setValue((before) => (Object.is(before.of, read()) ? before : { of: read() }));
    look(); // it may have changed between the first look and now
    return watch(look);
  }, []);
  return value.of;
}
