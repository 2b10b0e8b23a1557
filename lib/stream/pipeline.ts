/** Runs the stages of a sender to their end, or to the first failure. */
import type { Stream, Transform } from 'node:stream'
import pump from 'pump'
import type { Frames } from './encode-frames.ts'
import type { ImageStream } from './image-stream.ts'
import type { LinkStage } from './link-stage.ts'
import type { Pack } from './pack.ts'

/** From the images to the link. */
export type Stages = readonly [ImageStream, Pack, ...Transform[], Frames, LinkStage]

export interface RunningPipeline {
  /**
   * Resolves when all is on the link. Rejects with the first failure, when the receiver was told and nothing is used
   * any more.
   */
  done: Promise<void>
  /** Fails with `reason`, if it has not ended. */
  stop(reason: Error): void
}

/** `onFail` is called as soon as a stage has failed: what is under way on the link may take longer to end. */
export function runPipeline(stages: Stages, onFail: (reason: Error) => void = () => {}): RunningPipeline {
  const [images, pack] = stages
  const link = stages.at(-1) as LinkStage
  let failure: { reason: Error } | undefined
  let over = false
  const stop = (reason: Error): void => {
    if (failure !== undefined || over) return
    failure = { reason }
    onFail(reason)
    for (const stage of stages) stage.destroy(reason)
  }
  for (const stage of stages as readonly Stream[]) stage.on('error', stop)
  const run = async (): Promise<void> => {
    await new Promise<void>((resolve) => {
      pump([...stages], (error) => {
        if (error) stop(error)
        resolve()
      })
    })
    over = true
    if (failure === undefined) return
    await Promise.all([images.released, pack.released(), link.released])
    throw failure.reason
  }
  return { done: run(), stop }
}
