/** The stage `capture`: a `criu dump --stream` that somebody starts. */
import { acceptSpeaker } from '../kernel/unix.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { type ImageStream, imageStream } from '../stream/image-stream.ts'
import { CAPTURE_SOCKET, captureImages } from './capture.ts'
import { openWorkDir } from './work-directory.ts'

/**
 * The first stage of a sender: offers streamer-capture.sock in `directory`, which criu gets as -D, and gives the images
 * of the first criu that connects. Whether its dump succeeded only its exit code says: await that in `pack`'s
 * `confirm`. Throws `EXISTS`, `USAGE`, `MISSING` or `IO` where there can be no socket.
 */
export function capture(directory: string): ImageStream {
  const work = openWorkDir(directory, CAPTURE_SOCKET)
  let source: ImageSource | undefined
  async function* images(): AsyncGenerator<OpenImage> {
    try {
      source = captureImages(await acceptSpeaker(work.listener))
      yield* source.images
    } finally {
      work.remove()
    }
  }
  return imageStream({
    images: images(),
    destroy(reason) {
      work.remove(reason)
      source?.destroy(reason)
    },
  })
}
