/** A link whose progress is reported. */
import { filling, type Link } from './link.ts'

/** Bytes that are sent between two reports. */
const STEP = 256 * 2 ** 10

/** The same link; `moved` is told how many bytes were read, and how many the kernel has taken for the other end. */
export function metered(link: Link, moved: (bytes: number) => void): Link {
  const { inlet, outlet } = link
  const read = async (into: Uint8Array): Promise<number> => {
    const got = await inlet.read(into)
    moved(got)
    return got
  }
  return {
    inlet: { read, fill: filling(read) },
    outlet: {
      async send(bytes, more) {
        for (let at = 0; at < bytes.length; at += STEP) {
          const part = bytes.subarray(at, at + STEP)
          await outlet.send(part, more || at + STEP < bytes.length)
          moved(part.length)
        }
      },
      finish: () => outlet.finish(),
    },
    duplex: link.duplex,
    peer: link.peer,
    destroy: (reason) => link.destroy(reason),
  }
}
