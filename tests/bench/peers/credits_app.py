"""A FastAPI application that serves an organisation's credit activity, as in fastapi-pagination's documentation."""

import os
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi_pagination import Page, add_pagination
from fastapi_pagination.ext.sqlalchemy import apaginate
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

KEY = "key_bench"
ORG_ID = "org_bench"
engine = create_async_engine("postgresql+psycopg://" + os.environ["DATABASE_URL"].partition("://")[2])
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    """The base class of the tables."""


class Movement(Base):
    """A movement of the ledger."""

    __tablename__ = "credit_entries"

    id: Mapped[str] = mapped_column(primary_key=True)
    org_id: Mapped[str]
    kind: Mapped[str]
    credits: Mapped[int]
    usage_kind: Mapped[str | None]
    usage_ref: Mapped[str]
    created_at: Mapped[datetime]


class CreditEntry(BaseModel):
    """A movement as pages render it."""

    model_config = ConfigDict(from_attributes=True)

    object: Literal["credit_entry"] = "credit_entry"
    id: str
    kind: str
    credits: int
    usage_kind: str | None
    usage_ref: str
    created_at: datetime


async def session() -> AsyncIterator[AsyncSession]:
    """Give the database session of a request."""
    async with sessions() as opened:
        yield opened


def organisation(credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Return the organisation of the key."""
    if credentials.credentials != KEY:
        raise HTTPException(401)
    return ORG_ID


Session = Annotated[AsyncSession, Depends(session)]
OrgId = Annotated[str, Depends(organisation)]
app = FastAPI()
add_pagination(app)


@app.get("/credits/usage")
async def list_usage(session: Session, org_id: OrgId) -> Page[CreditEntry]:
    """Return a page of the organisation's movements, newest first."""
    return await apaginate(session, newest_first(org_id))


def newest_first(org_id: str):
    """Return the query for an organisation's movements."""
    return select(Movement).where(Movement.org_id == org_id).order_by(Movement.created_at.desc(), Movement.id.desc())
