/** The text of a `refused` or `failed` frame: short, and harmless where it is read. */

/** Bytes. */
export const LONGEST_REASON = 512

/** Without control characters: it ends up on somebody's terminal. */
export function harmless(text: string): string {
  return text.replace(/\p{C}/gu, '?')
}

/** At most LONGEST_REASON bytes; a character that is cut becomes U+FFFD, three bytes. */
export function cutText(text: string): Buffer {
  return Buffer.from(
    Buffer.from(text)
      .subarray(0, LONGEST_REASON - 3)
      .toString('utf8'),
  ).subarray(0, LONGEST_REASON)
}
