/**
 * flatten: writes a chain of image directories into one directory that needs no parent.
 *
 * Nothing goes over a wire to another host. The directory gets its name when everything is in it.
 */
import { digest } from '../format/digest.ts'
import type { Report } from '../progress.ts'
import { chainOf, type FlatImage, flatImages } from '../store/directory-chain.ts'
import { DirectorySink } from '../store/directory-sink.ts'

/**
 * Writes the dump in `from`, with the pages that its parents have, to `to`. Throws `MISSING`, `FAILED_DUMP`, `FORMAT`,
 * `EXISTS`, `IO`.
 */
export async function flattenDirectory(
  from: string,
  to: string,
  { report, signal }: { report: Report; signal: AbortSignal },
): Promise<void> {
  const begun = performance.now()
  const chain = chainOf(from)
  const flat = flatImages(chain)
  const sink = new DirectorySink(to)
  let images = 0
  let bytes = 0
  try {
    for (const image of flat) {
      bytes += await copyImage(image, sink, signal)
      images++
    }
    signal.throwIfAborted()
    sink.seal()
  } finally {
    await sink.drop()
  }
  report({ event: 'flattened', layers: chain.length, images, bytes, ms: performance.now() - begun })
}

/** Copies one image, and returns its size in bytes. */
async function copyImage({ name, body }: FlatImage, sink: DirectorySink, signal: AbortSignal): Promise<number> {
  const writer = await sink.open(name)
  const sum = digest()
  let size = 0
  for await (const piece of body.pieces) {
    signal.throwIfAborted()
    for (let done = 0; done < piece.length; ) {
      const room = writer.room(piece.length - done)
      const part = piece.subarray(done, done + room.length)
      room.set(part)
      sum.update(part)
      await writer.wrote(part.length)
      done += part.length
    }
    size += piece.length
  }
  await writer.end({ name, size, digest: sum.finish() })
  return size
}
