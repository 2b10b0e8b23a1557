import { type FrameName, frameType } from '../../lib/format/frame-types.ts'
import { accepting } from '../../lib/stream/frames.ts'

/** For a reader that takes whatever comes. */
export const anyFrame = accepting(...(Object.keys(frameType) as FrameName[]))
