/** What can go wrong between a caller and the server. Knows the error table of the HTTP contract. */

import type { components } from "./openapi.js";

/** Everything that the client throws on purpose; an abort is the signal's own reason. */
export class PolyprefixError extends Error {
  override name = "PolyprefixError";
}

/** What cannot be sent, and was not: a key or a URL that no request can hold, a number that JSON has no form for. */
export class InvalidRequest extends PolyprefixError {
  override name = "InvalidRequest";
}

/** The server could not be reached, or the connection broke before the answer was whole. */
export class ConnectionFailed extends PolyprefixError {
  override name = "ConnectionFailed";
}

/** The answer is not what the contract says; probably something else answers at this URL. */
export class UnexpectedAnswer extends PolyprefixError {
  override name = "UnexpectedAnswer";
}

export interface Refusal {
  message: string;
  status: number;
  code: string;
  requestId: string | null;
  retryAfter: number | null;
}

/**
 * The server refused or failed a request, and said so.
 *
 * `code` is the contract's name for the case (`error_type`), `requestId` what to look for in the server's log,
 * `retryAfter` the seconds that it asks to wait, when it asks.
 */
export class ApiError extends PolyprefixError {
  override name = "ApiError";
  readonly status: number;
  readonly code: string;
  readonly requestId: string | null;
  readonly retryAfter: number | null;

  constructor(refusal: Refusal) {
    super(`${refusal.message} (${refusal.status} ${refusal.code})`);
    this.status = refusal.status;
    this.code = refusal.code;
    this.requestId = refusal.requestId;
    this.retryAfter = refusal.retryAfter;
  }
}

/** No key, or a wrong one. */
export class Unauthorized extends ApiError {
  override name = "Unauthorized";
}

/** No such task; another tenant's reads the same. */
export class NotFound extends ApiError {
  override name = "NotFound";
}

/** A field's value, or a request that does not fit the backbone. */
export class ValidationFailed extends ApiError {
  override name = "ValidationFailed";
}

/** The engine failed this row, and this row only. */
export class GenerationFailed extends ApiError {
  override name = "GenerationFailed";
}

/** The queue is full, or the tenant's own limit is reached: try again after `retryAfter` seconds. */
export class Overloaded extends ApiError {
  override name = "Overloaded";
}

/** Starting, draining, or the engine is gone: try again after `retryAfter` seconds. */
export class Unavailable extends ApiError {
  override name = "Unavailable";
}

/** The wait in the queue or the whole request took too long. */
export class DeadlineExceeded extends ApiError {
  override name = "DeadlineExceeded";
}

const CLASSES = new Map<number, typeof ApiError>([
  [401, Unauthorized],
  [404, NotFound],
  [422, ValidationFailed],
  [424, GenerationFailed],
  [429, Overloaded],
  [503, Unavailable],
  [504, DeadlineExceeded],
]);
/** The statuses of errors inside a stream, whose own status was 200 already. */
const STATUSES = new Map([
  ["generation", 424],
  ["quarantined", 424],
  ["unavailable", 503],
  ["deadline", 504],
  ["internal", 500],
]);

type ErrorBody = components["schemas"]["ErrorAnswer"];

/** The error for an answer that is no success. One without our JSON comes from something in between, a proxy say. */
export async function errorFromResponse(response: Response): Promise<ApiError> {
  const text = await response.text();
  const body = errorBody(text);
  return apiError({
    message: body?.error ?? (text.slice(0, 200) || response.statusText),
    status: response.status,
    code: body?.error_type ?? `http_${response.status}`,
    requestId: response.headers.get("x-request-id"),
    retryAfter: secondsToWait(response.headers.get("retry-after")),
  });
}

/** The error that an event tells. */
export function errorFromEvent(body: ErrorBody, requestId: string | null): ApiError {
  const status = STATUSES.get(body.error_type) ?? 200;
  return apiError({ message: body.error, status, code: body.error_type, requestId, retryAfter: null });
}

function apiError(refusal: Refusal): ApiError {
  return new (CLASSES.get(refusal.status) ?? ApiError)(refusal);
}

function errorBody(text: string): ErrorBody | null {
  try {
    const body: unknown = JSON.parse(text);
    return isErrorBody(body) ? body : null;
  } catch {
    return null;
  }
}

export function isErrorBody(body: unknown): body is ErrorBody {
  return typeof body === "object" && body !== null && "error" in body && typeof body.error === "string";
}

/** `Retry-After` is a number of seconds or a date (RFC 9110, 10.2.3). */
export function secondsToWait(retryAfter: string | null): number | null {
  if (retryAfter === null) {
    return null;
  }
  if (/^\s*\d+\s*$/.test(retryAfter)) {
    return Number(retryAfter);
  }
  if (!/[a-z]/i.test(retryAfter)) {
    return null; // engines read "1.5" as a date, too
  }
  const milliseconds = Date.parse(retryAfter) - Date.now();
  return Number.isNaN(milliseconds) ? null : Math.max(0, milliseconds / 1000);
}
