import { useEffect, useRef, useState } from "preact/hooks";

/** The width of an element in pixels, for what is drawn in it; 0 until it is known. */
export function useWidth<T extends HTMLElement>() {
  const element = useRef<T>(null);
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const target = element.current;
    if (!target) return;
    const look = () => setWidth(Math.floor(target.clientWidth));
    const observer = new ResizeObserver(look);
    observer.observe(target);
    look();
    return () => observer.disconnect();
  }, []);
  return { element, width };
}
