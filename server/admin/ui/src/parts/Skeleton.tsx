/** A grey stand-in of the size that the content will have, so that nothing jumps when it comes. */
export function Skeleton({ lines = 1, tall = false }: { lines?: number; tall?: boolean }) {
  return (
    <div class="skeleton" aria-hidden="true">
      {Array.from({ length: lines }, (_, number) => (
        <span key={number} class={tall ? "bone tall" : "bone"} />
      ))}
    </div>
  );
}
