import { Xxh64 } from '@node-rs/xxhash'

/**
 * XXH64 (seed 0) over an image's bytes, as `xxhsum -H64` prints it: 10 GB/s here, against 4 for CRC-32 and 1.5 for
 * SHA-256. It finds damage; it is no defence against a forger, which is what an authenticated link is for.
 */
export interface Digest {
  update(bytes: Uint8Array): void
  /** The 64-bit value. */
  finish(): bigint
}

export function digest(): Digest {
  const state = new Xxh64(0n)
  return { update: (bytes) => void state.update(bytes), finish: () => state.digest() }
}

/** The digest of bytes that nobody checks: 0. */
export const NO_DIGEST: Digest = { update: () => {}, finish: () => 0n }

/** `0123456789abcdef`: the form of digests in messages. */
export function hex64(value: bigint): string {
  return value.toString(16).padStart(16, '0')
}

/** The digest of a snapshot, for people. */
export function digestWords({ images, digest }: { images: readonly { digest: bigint }[]; digest: bigint }): string {
  return images.every((image) => image.digest === 0n) ? 'none: only sizes were compared' : hex64(digest)
}
