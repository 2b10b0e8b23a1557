import { Fault } from '../fault.ts'

/** The name of one CRIU image file: a plain file name that cannot leave a directory. Made by `imageName` only. */
export type ImageName = string & { readonly __brand: 'ImageName' }

/** The name of a snapshot, chosen by an operator or made by the source. Made by `snapshotId` only. */
export type SnapshotId = string & { readonly __brand: 'SnapshotId' }

/** NAME_MAX of Linux file systems is 255; CRIU's own names stay below 60. */
export const LONGEST_NAME = 128
export const LONGEST_ID = 64

const imagePattern = new RegExp(`^[A-Za-z0-9_][A-Za-z0-9._+:@=-]{0,${LONGEST_NAME - 1}}$`)
const idPattern = new RegExp(`^[A-Za-z0-9_][A-Za-z0-9._+:@=-]{0,${LONGEST_ID - 1}}$`)

/** The one door for image names from CRIU, from a peer and from a directory. Throws `NAME`. */
export function imageName(text: string): ImageName {
  if (!imagePattern.test(text)) throw new Fault('NAME', `image name refused: ${printable(text)}`)
  return text as ImageName
}

/** Throws `NAME`, or `USAGE` for one from the command line. */
export function snapshotId(text: string, code: 'NAME' | 'USAGE' = 'NAME'): SnapshotId {
  if (!idPattern.test(text)) {
    throw new Fault(code, `snapshot id refused: ${printable(text)}`, {
      hint: `letters, digits and ._+:@=- only, at most ${LONGEST_ID}`,
    })
  }
  return text as SnapshotId
}

/** A peer's text made safe for a terminal and a log line. */
export function printable(text: string): string {
  const cut = text.length > 80 ? `${text.slice(0, 80)}...` : text
  return JSON.stringify(cut).replace(/[^\x20-\x7e]/g, '?')
}

/** CRIU writes it last: a snapshot without it is a dump that did not finish. */
export const INVENTORY = 'inventory.img' as ImageName
