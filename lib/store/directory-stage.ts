/** The stage `directory`: the images that a finished dump left. */
import { join } from 'node:path'
import type { ImageName } from '../format/names.ts'
import { checkPagemaps } from '../format/pagemap.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { type ImageStream, imageStream } from '../stream/image-stream.ts'
import { listImages, piecesOf } from './directory.ts'
import { chainOf, flatImages } from './directory-chain.ts'

/**
 * The first stage of a sender: the images that `criu dump -D` left in `path`, with the pages of its parents where the
 * dump is incremental. Throws `MISSING`, `NAME`, `FORMAT`, `FAILED_DUMP` or `IO`.
 */
export function directory(path: string): ImageStream {
  return imageStream(directorySource(path))
}

/**
 * The same as a source: the regular files `*.img`, inventory.img last, as CRIU writes it. Throws as `directory` does.
 */
export function directorySource(path: string): ImageSource {
  const chain = chainOf(path)
  const names = listImages(path)
  checkPagemaps(names, ` in ${path}`)
  const asItIs = (name: ImageName): OpenImage => ({
    name,
    body: { kind: 'pieces', pieces: piecesOf(join(path, name)) },
  })
  const all = chain.length === 1 ? names.map(asItIs) : flatImages(chain)
  let failure: Error | undefined
  async function* images(): AsyncGenerator<OpenImage> {
    for (const image of all) {
      if (failure !== undefined) throw failure
      yield image
    }
  }
  return {
    images: images(),
    destroy(reason) {
      failure ??= reason
    },
  }
}
