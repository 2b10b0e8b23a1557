/** Sending a snapshot: the stages of a sender, joined. */
import { type FramesOptions, frames } from './encode-frames.ts'
import type { FrameWriter } from './frames.ts'
import type { ImageSource } from './image.ts'
import { imageStream } from './image-stream.ts'
import { LinkStage } from './link-stage.ts'
import { type PackOptions, pack } from './pack.ts'
import { runPipeline } from './pipeline.ts'
import { rateLimit } from './rate-limit.ts'
import type { Snapshot } from './summary.ts'

export interface SendOptions extends Omit<PackOptions, 'round' | 'inPlace'>, Omit<FramesOptions, 'id'> {
  /** Called as soon as it has failed: what is under way on the link may take longer to end. */
  onFail?: (reason: Error) => void
  /** Stops everything; its reason is thrown. It is ignored when CRIU may let go of the tasks. */
  signal?: AbortSignal
}

/**
 * Sends all images of `source`. Returns what the end frame said. Throws `FAILED_DUMP` where the source ends without
 * inventory.img, `CRIU_PROTOCOL` where it opens an image twice, `LINK`, `IO`, and what the source throws; the receiver
 * is told the reason where the link still carries it.
 */
export async function sendSnapshot(
  writer: FrameWriter,
  id: FramesOptions['id'],
  source: ImageSource,
  { onFail, signal, ...options }: SendOptions = {},
): Promise<Snapshot> {
  const { limit, silence, onDrained, layer } = options
  if (signal?.aborted) {
    source.destroy(signal.reason as Error)
    onFail?.(signal.reason as Error)
    silence?.close()
    const stage = new LinkStage(writer).on('error', () => {})
    stage.destroy(signal.reason as Error)
    await stage.released
    throw signal.reason
  }
  const outside = (): void => running.stop(signal?.reason as Error)
  const packed = pack({
    ...options,
    inPlace: writer.inPlace,
    round: layer?.last === false,
    async onDrained(endBytes) {
      // CRIU may kill the tasks from here on: a signal comes too late.
      signal?.removeEventListener('abort', outside)
      await onDrained?.(endBytes)
    },
  })
  const running = runPipeline(
    [
      imageStream(source),
      packed,
      ...(limit === undefined ? [] : [rateLimit(limit, silence)]),
      frames({ ...options, id }),
      new LinkStage(writer, { silence }),
    ],
    onFail,
  )
  silence?.follow(source.news)
  signal?.addEventListener('abort', outside)
  try {
    await running.done
    return packed.snapshot
  } finally {
    signal?.removeEventListener('abort', outside)
    silence?.close()
  }
}
