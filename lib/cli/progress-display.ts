import { commandName } from '../command-name.ts'
import type { Progress } from '../progress.ts'
import { formatSize } from '../size.ts'

/** One line of text about a step, for people. */
export function describeProgress(progress: Progress): string {
  switch (progress.event) {
    case 'listening':
      return `listening on ${progress.at}`
    case 'ready':
      return 'ready'
    case 'status':
      return `status: ${status(progress)}`
    case 'waiting':
      return `waiting for ${progress.what}`
    case 'sent': {
      const sent = progress.verified ? 'sent and sealed by the cache' : 'sent'
      return `snapshot ${progress.id} ${sent}: ${amount(progress)}${spared(progress.spared)}`
    }
    case 'sealed': {
      const round = progress.round === undefined ? '' : `round ${progress.round} of `
      return `${round}snapshot ${progress.id} sealed: ${amount(progress)}, digest ${progress.digest}`
    }
    case 'served':
      return `snapshot ${progress.id} served: ${amount(progress)}`
    case 'dumped':
      return `dumped in ${seconds(progress.ms)}${frozen(progress.frozenMs)}`
    case 'small pipes':
      return (
        `pipes hold only ${formatSize(progress.bytes)}, and a dump takes up to twice as long: ` +
        'raise fs.pipe-max-size and fs.pipe-user-pages-soft with sysctl, or give CAP_SYS_RESOURCE'
      )
    case 'lost by stream':
      return `snapshot ${progress.id}: ${progress.fault.message}; ${progress.fault.hint}`
    case 'nothing offered':
      return `the cache offers no pages (${commandName('cache')} --dedup): all of them are sent`
    case 'restored':
      return `restored in ${seconds(progress.ms)}`
    case 'handed over':
      return `snapshot ${progress.id} handed over: ${here[progress.verdict]}, ${there[progress.fate]}`
    case 'not handed over':
      return `snapshot ${progress.id} not handed over: the source runs on, the target runs nothing of it`
    case 'undecided':
      return (
        `snapshot ${progress.id} is held until its source says what became of the process; ` +
        `by hand: ${progress.how}`
      )
    case 'round':
      return `snapshot ${progress.id}, round ${progress.number}: ${progress.pages} pages, ${rate(progress)}`
    case 'predicted': {
      const next = progress.enough === undefined ? 'another round' : `the last dump, for ${progress.enough}`
      return `predicted freeze ${seconds(progress.frozenMs)}: ${next}`
    }
    case 'flattened':
      return `flattened ${progress.layers} ${progress.layers === 1 ? 'layer' : 'layers'}: ${amount(progress)}`
    case 'failed':
      return `${progress.what} failed: ${progress.fault.message}`
  }
}

const here = {
  go: 'the source is gone',
  copy: 'the source runs on, criu left it running',
}
const there = {
  stored: 'the cache keeps its images',
  running: 'it runs on the target',
  dropped: 'the target runs nothing of it',
}

function status(now: Extract<Progress, { event: 'status' }>): string {
  if (now.of === 'proxy') return `dumps in progress: ${now.dumps}, sent: ${formatSize(now.sent)}`
  const memory = `${formatSize(now.used)} of ${formatSize(now.limit)}`
  return (
    `snapshots: ${now.snapshots}, chains: ${now.chains}, memory: ${memory}, ` +
    `links: ${now.links}, silent: ${now.silent}, held for peers: ${formatSize(now.peers)}, ` +
    `restores that wait: ${now.parked}`
  )
}

function frozen(ms: number | undefined): string {
  return ms === undefined ? '' : `, frozen for ${seconds(ms)}`
}

function amount({ images, ...moved }: { images: number; bytes: number; ms: number }): string {
  return `${images} images, ${rate(moved)}`
}

/** What `--dedup` did not send, if that is anything. */
function spared(bytes = 0): string {
  return bytes === 0 ? '' : `, of which the cache had ${formatSize(bytes)}`
}

function rate({ bytes, ms }: { bytes: number; ms: number }): string {
  return `${formatSize(bytes)} in ${seconds(ms)} (${formatSize((bytes / Math.max(ms, 0.001)) * 1000)}/s)`
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(3)} s`
}
