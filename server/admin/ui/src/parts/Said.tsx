/** A sentence of the server's, with what stands between backticks as code. Always text, whatever is in it. */
export function Said({ text }: { text: string }) {
  return (
    <bdi>{text.split("`").map((part, number) => (number % 2 ? <code key={number}>{part}</code> : part))}</bdi>
  );
}
